"""The rollout worker with a scripted engine, a tiny tokenizer and the real verifier process."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from actors.config import RewardsConfig, RolloutConfig, SamplingConfig
from actors.engines.protocol import Completion, EngineDeadError, FinishReason, GenerationRequest, Running
from actors.environments.single_turn import SingleTurnConfig
from actors.prompts.prompt import Prompt, Ticket
from actors.rewards.protocol import Verdict
from actors.rewards.range import within
from actors.rollout import worker as rollout_module
from actors.rollout.actor import RolloutActor
from actors.rollout.evaluated import EvaluationDraw
from actors.rollout.group import PromptTooLongError
from actors.rollout.spec import RolloutSpec
from actors.rollout.worker import RolloutWorker
from actors.shaping.dot import Dot
from actors.shaping.l1 import L1
from actors.shaping.unlikeliness import Unlikeliness
from actors.weights.block import pack
from actors.weights.object_store import ObjectStoreConfig
from actors.weights.offer import WeightOffer
from moments_service.messages.groups import GroupStatus
from tests.shelf import Shelf

pytestmark = pytest.mark.unit

WORDS = ["<pad>", "<eos>", "<stop>", "two", "plus", "4", "5", "is"]
EOS, STOP, FOUR, FIVE = 1, 2, 5, 6
ENDS = json.dumps({"kind": "regex", "pattern": "4$"})
"""A verifier of what ends with a 4."""


class ScriptedEngine:
    """Returns what a test prepared; keeps every request."""

    def __init__(self) -> None:
        self.policy_version = 3
        self.requests: list[GenerationRequest] = []
        self.script: list[Completion] = []
        self.running = False
        self.taken: list[WeightOffer] = []

    async def start(self) -> None:
        self.running = True

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        self.requests.append(request)
        if not self.script:
            raise EngineDeadError("nothing left to say")
        return tuple(self.script[i % len(self.script)] for i in range(request.n))

    async def take_weights(self, offer: WeightOffer, running: Running) -> None:
        self.taken.append(offer)
        self.policy_version = offer.version

    async def close(self) -> None:
        self.running = False


def completion(ids: Sequence[int], reason: FinishReason = "stop", versions: Sequence[int] | None = None) -> Completion:
    versions = [3] * len(ids) if versions is None else versions
    logprobs = -np.arange(len(ids), dtype=np.float32)
    return Completion(np.array(ids, np.int32), logprobs, np.array(versions, np.int32), reason)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("policy")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(directory)
    return str(directory)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    engine = ScriptedEngine()
    monkeypatch.setattr(rollout_module, "create_engine", lambda *arguments: engine)
    return engine


def make_spec(policy: str, **changes: object) -> RolloutSpec:
    arguments: dict[str, object] = {
        "rollout": RolloutConfig(max_model_len=8),
        "rewards": RewardsConfig(),
        "environment": SingleTurnConfig(),
        "weights": ObjectStoreConfig(),
        "sampling": SamplingConfig(max_tokens=3, temperature=0.7, top_p=0.9, top_k=5, stop=("<stop>",)),
        "policy": policy,
        "chat": False,
        "seed": 11,
        "text_chars": 100,
    }
    return RolloutSpec(**(arguments | changes))  # type: ignore[arg-type]


def make_worker(policy: str, **changes: object) -> RolloutWorker:
    return RolloutWorker(make_spec(policy, **changes), index=0)


@pytest.fixture
async def worker(policy: str, engine: ScriptedEngine) -> AsyncIterator[RolloutWorker]:
    worker = make_worker(policy)
    await worker.start()
    yield worker
    await worker.close()


def ticket(text: str = "two plus two is", answer: str | None = "4", number: int = 0) -> Ticket:
    prompt = Prompt(prompt_id=f"p{number}", source="sums", text=text, answer=answer, verifier="exact")
    return Ticket(f"p{number}:1:0:0", prompt, group_size=2, sequence=9)


async def test_a_group_is_sampled_scored_and_described(worker: RolloutWorker, engine: ScriptedEngine) -> None:
    engine.script = [completion([FOUR, STOP], versions=[2, 3]), completion([FIVE, FIVE, FIVE], "length")]
    rollout = await worker.rollout(ticket())

    (request,) = engine.requests
    assert (request.request_id, request.n, request.max_tokens) == ("p0:1:0:0", 2, 3)
    assert (request.temperature, request.top_p, request.top_k) == (0.7, 0.9, 5)
    assert request.token_ids == (3, 4, 3, 7) and request.stop_token_ids == (STOP,)

    header = rollout.header
    assert header.rewards == (1.0, 0.0) and header.errors == (None, None)
    assert header.lengths == (2, 3) and header.truncated == (False, True)
    assert header.policy_versions == (2, 3)
    assert (header.group_id, header.sequence, header.source) == ("p0:1:0:0", 9, "sums")
    assert header.status is GroupStatus.SCORED and header.turns == (1, 1)

    first, second = rollout.samples
    assert (first.group_id, first.index, second.index, first.temperature) == (header.group_id, 0, 1, 0.7)
    assert first.token_ids.tolist() == [3, 4, 3, 7, FOUR, STOP] and second.token_ids.tolist()[4:] == [FIVE] * 3
    assert first.loss_mask.tolist() == [False] * 4 + [True] * 2 and second.trained_tokens == 3
    assert first.versions.tolist() == [-1] * 4 + [2, 3] and first.logprobs.tolist() == [0, 0, 0, 0, 0, -1]
    assert (first.token_ids.dtype, first.versions.dtype, first.logprobs.dtype) == (np.int32, np.int32, np.float32)
    assert not first.truncated and second.truncated and first.turns == 1
    assert rollout.transcript is not None and rollout.transcript.completions == ("4", "5 5 5")
    assert rollout.timings["tokens"] == 5 and rollout.timings["score_s"] > 0


async def test_seeds_belong_to_the_group(worker: RolloutWorker, engine: ScriptedEngine) -> None:
    engine.script = [completion([FOUR, EOS])]
    for each in (ticket(), ticket(), ticket(number=1), ticket().next_attempt()):
        await worker.rollout(each)
    seeds = [request.seed for request in engine.requests]
    assert seeds[0] == seeds[1] and len(set(seeds)) == 3


async def test_an_aborted_completion_is_an_error_and_never_judged(
    worker: RolloutWorker, engine: ScriptedEngine
) -> None:
    # Its text so far would be right.
    engine.script = [completion([FOUR], "abort"), completion([FOUR, EOS])]
    header = (await worker.rollout(ticket())).header
    assert header.rewards == (None, 1.0) and header.errors == ("aborted", None)
    assert header.status is GroupStatus.SCORED


@pytest.mark.parametrize(
    ("bounds", "reward", "error"),
    [
        (None, 1e300, "reward 1e+300 is outside of [-1e+18, 1e+18]"),
        (None, -1e300, "reward -1e+300 is outside of [-1e+18, 1e+18]"),
        (None, 1e18, None),
        ((0.0, 1.0), 1.5, "reward 1.5 is outside of [0, 1] (rewards.range)"),
        ((0.0, 1.0), -0.5, "reward -0.5 is outside of [0, 1] (rewards.range)"),
        ((0.0, 1.0), 1.0, None),
    ],
)
def test_a_reward_out_of_range_is_an_error_of_its_completion(
    bounds: tuple[float, float] | None, reward: float, error: str | None
) -> None:
    told = within(Verdict(reward, seconds=2.0, note="seen"), bounds)
    assert (told.reward, told.error) == (None if error else reward, error)
    assert (told.seconds, told.note) == (2.0, "seen")
    assert within(Verdict(None, "timed out"), bounds) == Verdict(None, "timed out")


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (1.0, 1.0), (0.0, 1e300), (float("nan"), 1.0)])
def test_a_range_that_nothing_fits_is_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="range"):
        RewardsConfig(range=bounds)


async def test_a_group_keeps_what_is_within_the_range(policy: str, engine: ScriptedEngine) -> None:
    worker = make_worker(policy, rewards=RewardsConfig(range=(-1.0, 0.5)))
    await worker.start()
    engine.script = [completion([FOUR, EOS]), completion([FIVE, EOS])]
    header = (await worker.rollout(ticket())).header
    await worker.close()
    assert header.rewards == (None, 0.0)
    assert header.errors == ("reward 1 is outside of [-1, 0.5] (rewards.range)", None)


async def test_a_group_without_any_reward_is_an_error(worker: RolloutWorker, engine: ScriptedEngine) -> None:
    engine.script = [completion([], "abort", []), completion([FOUR, EOS])]
    rollout = await worker.rollout(ticket(answer=None))
    assert rollout.header.status is GroupStatus.ERROR
    assert rollout.header.errors[0] == "aborted" and "no gold answer" in str(rollout.header.errors[1])
    engine.script = engine.script[:1]
    assert (await worker.rollout(ticket())).header.policy_versions == (3, 3)


def how(samples: int, temperature: float) -> EvaluationDraw:
    return EvaluationDraw(samples, temperature, top_p=1.0, top_k=0, max_tokens=3)


async def test_a_prompt_that_is_too_long_is_refused_before_sampling(
    worker: RolloutWorker, engine: ScriptedEngine
) -> None:
    long = ticket("two plus two plus two plus")
    with pytest.raises(PromptTooLongError, match=r"prompt p0 of source `sums` has 6 tokens.* leaves 5"):
        await worker.rollout(long)
    with pytest.raises(PromptTooLongError):
        await worker.evaluate([long.prompt], how(2, 1.0))
    assert engine.requests == []


async def test_evaluation_samples_at_its_own_temperature(worker: RolloutWorker, engine: ScriptedEngine) -> None:
    engine.script = [completion([FOUR, EOS]), completion([FIVE, EOS]), completion([FOUR], "abort")]
    prompts = [ticket().prompt, replace(ticket(number=1).prompt, answer="5")]
    found = await worker.evaluate(prompts, replace(how(3, 0.3), top_p=0.9, top_k=7, max_tokens=2))
    assert [one.rewards for one in found] == [(1.0, 0.0, None), (0.0, 1.0, None)]
    assert found[0].errors[2] == "aborted" and found[0].lengths == (2, 2, 1) and found[0].answers[:2] == ("4", "5")
    asked = {(one.temperature, one.top_p, one.top_k, one.max_tokens) for one in engine.requests}
    assert asked == {(0.3, 0.9, 7, 2)}


async def test_greedy_evaluation_decodes_once(worker: RolloutWorker, engine: ScriptedEngine) -> None:
    engine.script = [completion([FOUR, EOS])]
    (found,) = await worker.evaluate([ticket().prompt], how(3, 0.0))
    assert found.rewards == (1.0, 1.0, 1.0) and found.lengths == (2, 2, 2)
    assert [(request.n, request.temperature) for request in engine.requests] == [(1, 0.0)]


async def test_texts_are_kept_for_a_fixed_share_of_groups(policy: str, engine: ScriptedEngine) -> None:
    engine.script = [completion([FIVE, FIVE, FIVE], "length")]
    kept = []
    for seed in (0, 1):
        worker = make_worker(policy, text_share=0.5, text_chars=3, seed=seed)
        await worker.start()
        groups = [await worker.rollout(ticket(number=i)) for i in range(40)]
        await worker.close()
        kept.append([group.transcript for group in groups])
    assert kept[0] == kept[1]
    shown = [transcript for transcript in kept[0] if transcript is not None]
    assert 8 < len(shown) < 32
    assert {(t.prompt, t.completions) for t in shown} == {("two", ("5 5", "5 5"))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": SamplingConfig(stop=("two plus",))}, r"sampling.stop: 'two plus' is 2 tokens"),
        ({"chat": True}, "no chat template"),
        ({"verifiers": ("numerik",)}, "did you mean `numeric`"),
    ],
)
async def test_what_cannot_work_fails_at_the_start(
    policy: str, engine: ScriptedEngine, changes: dict[str, object], message: str
) -> None:
    worker = make_worker(policy, **changes)
    with pytest.raises((ValueError, RuntimeError), match=message):
        await worker.start()
    assert not engine.running


async def test_a_chat_template_wraps_the_prompt(policy: str, engine: ScriptedEngine, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(policy)
    tokenizer.chat_template = "{% for m in messages %}is {{ m.content }} is{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    worker = make_worker(str(tmp_path), chat=True)
    await worker.start()
    engine.script = [completion([FOUR, EOS])]
    await worker.rollout(ticket("two plus"))
    assert engine.requests[0].token_ids == (7, 3, 4, 7)
    await worker.close()


async def test_a_dead_engine_is_the_caller_s_business(worker: RolloutWorker) -> None:
    with pytest.raises(EngineDeadError):
        await worker.rollout(ticket())


async def test_weights_come_by_the_transport_of_the_spec(policy: str, engine: ScriptedEngine) -> None:
    shelf = Shelf()
    actor = RolloutActor(make_spec(policy, weights=shelf), index=0)

    def offer(version: int) -> WeightOffer:
        made, blob = pack([("weight", torch.full((2,), float(version)))], version)
        address = asyncio.get_running_loop().create_future()
        address.set_result(shelf.place(blob, version, elsewhere=False))
        return replace(made, address=address)

    try:
        assert await actor.ready(offer(5)) == 5
        assert await actor.ready(offer(5)) == 5
        await actor.take(offer(6))
    finally:
        await actor.close()
    assert [taken.version for taken in engine.taken] == [5, 6]
    assert engine.taken[1].address is shelf.places["place 6"]


async def test_shaping_tells_budgets_and_looks_at_completions_past_what_is_remembered(
    policy: str, engine: ScriptedEngine
) -> None:
    engine.script = [completion([FOUR, STOP]), completion([FIVE, FIVE, FIVE], "length")]
    rules = (L1(tokens=(2, 2), tell=" is {budget} 4"), Unlikeliness())
    worker = make_worker(policy, shaping=rules, rollout=RolloutConfig(max_model_len=16))
    await worker.start()
    found = await worker.rollout(ticket())
    plain = make_worker(policy, rollout=RolloutConfig(max_model_len=16))
    await plain.start()
    expected = await plain.rollout(ticket())
    await worker.close()
    await plain.close()
    told, untold = (request.token_ids for request in engine.requests)
    assert untold == (3, 4, 3, 7) and told == (*untold, 7, 0, FOUR)  # the tokenizer has no 2
    assert expected.header.prompt_tokens == 4 and found.header == replace(expected.header, prompt_tokens=7)
    assert found.samples[0].token_ids.tolist() == [*told, FOUR, STOP]
    assert found.transcript is not None and found.transcript.prompt.endswith(" is 2 4")
    assert found.observed == {"l1": (2.0, 2.0), "unlikeliness": (-1.0, -3.0)} and expected.observed == {}


async def test_an_outlier_of_a_group_that_is_all_right_is_cut_for_the_learner_alone(
    policy: str, engine: ScriptedEngine
) -> None:
    engine.script = [completion([FOUR, EOS])] * 5 + [completion([FIVE, FIVE, FIVE, FIVE, FOUR, EOS])]
    rules = (Dot(deviations=1.0, least_cut=1),)
    sampling = SamplingConfig(max_tokens=6)
    worker = make_worker(policy, shaping=rules, sampling=sampling, rollout=RolloutConfig(max_model_len=16))
    await worker.start()
    found = await worker.rollout(
        replace(ticket(answer=None), group_size=6, prompt=replace(ticket().prompt, verifier=ENDS))
    )
    await worker.close()
    # 6 tokens among five times 2: mean 2.67, deviation 1.49, cut at 4.
    assert found.header.rewards == (1.0,) * 6 and found.header.lengths == (2, 2, 2, 2, 2, 6)
    assert found.header.truncated == (False,) * 6
    assert [sample.trained_tokens for sample in found.samples] == [2, 2, 2, 2, 2, 4]
    np.testing.assert_array_equal(found.observed["dot"], [np.nan] * 5 + [0.0])


async def test_a_slow_verifier_holds_up_neither_sampling_nor_other_verdicts(
    policy: str, engine: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the end of a group that is sampled and judged while it works."""
    (tmp_path / "slow.py").write_text(
        "def judge(prompt, completion):\n    return float(open(prompt.row['pipe']).read())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    slow = ticket()
    slow = replace(slow, prompt=replace(slow.prompt, verifier="slow:judge", row={"pipe": str(tmp_path / "pipe")}))
    worker = make_worker(policy, rewards=RewardsConfig(timeout_s=60.0), verifiers=("slow:judge", "exact"))
    engine.script = [completion([FOUR, STOP])]
    try:
        await worker.start()
        waiting = asyncio.create_task(worker.rollout(replace(slow, group_size=1)))
        others = await asyncio.gather(*(worker.rollout(ticket(number=number)) for number in range(1, 5)))
        assert all(group.header.rewards == (1.0, 1.0) for group in others) and not waiting.done()
        await asyncio.to_thread((tmp_path / "pipe").write_text, "0.5")
        group = await waiting
    finally:
        await worker.close()
    assert group.header.rewards == (0.5,) and group.timings["verdicts"] == 1
    assert group.timings["wait_s"] > max(other.timings["wait_s"] for other in others)
