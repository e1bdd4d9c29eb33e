"""Samples of several turns, for real: the transformers engine, a small environment, and an oracle of every log-prob."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from actors.config import RewardsConfig, RolloutConfig, SamplingConfig
from actors.engines.protocol import Completion, GenerationRequest
from actors.environments.protocol import Environment, Opening, Turn
from actors.prompts.prompt import Prompt, Ticket
from actors.rollout.spec import RolloutSpec
from actors.rollout.worker import RolloutWorker
from actors.weights.object_store import ObjectStoreConfig
from moments_service.messages.groups import GroupStatus
from tests.contract.conftest import VOCABULARY

pytestmark = pytest.mark.contract

STOPS = tuple(f"w{i}" for i in range(3, 130))
"""So many that every reply ends within a few tokens."""


@dataclass
class Talk:
    """What `Talkative` does in each step, and what it was told."""

    answers: list[Turn | Exception]
    openings: Callable[[int], str] = lambda seed: "w5 w6"
    timeout_s: float = 30.0
    replies: list[list[str]] = field(default_factory=list)
    closed: int = 0

    def create(self) -> Environment:
        return Talkative(self)


class Talkative:
    def __init__(self, talk: Talk) -> None:
        self.talk, self.replies = talk, []
        talk.replies.append(self.replies)

    async def reset(self, prompt: Prompt, seed: int) -> Opening:
        return Opening(self.talk.openings(seed))

    async def step(self, reply: str, timeout_s: float) -> Turn:
        turn = self.talk.answers[len(self.replies)]
        self.replies.append(reply)
        if isinstance(turn, Exception):
            raise turn
        return turn

    async def close(self) -> None:
        self.talk.closed += 1


@pytest.fixture(scope="module")
def policy(tiny_policy):
    made = tiny_policy("qwen3", tied=True)
    vocabulary = {f"w{i}": i for i in range(3, VOCABULARY)} | {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(made.path)
    return made


@pytest.fixture
async def start(policy) -> AsyncIterator[Callable]:
    workers = []

    async def worker_for(talk: Talk, **rollout: object) -> RolloutWorker:
        spec = RolloutSpec(
            rollout=RolloutConfig(engine="transformers", **({"max_model_len": 256} | rollout)),
            sampling=SamplingConfig(max_tokens=100, temperature=0.8, stop=STOPS),
            rewards=RewardsConfig(),
            environment=talk,
            weights=ObjectStoreConfig(),
            policy=str(policy.path),
            chat=False,
            seed=3,
        )
        workers.append(RolloutWorker(spec, index=0))
        await workers[-1].start()
        return workers[-1]

    yield worker_for
    for worker in workers:
        await worker.close()


def ticket(size: int = 4) -> Ticket:
    prompt = Prompt(prompt_id="p", source="s", text="w9", answer="w1", verifier="exact")
    return Ticket("p:0:0:0", prompt, group_size=size, sequence=0)


def stretches(mask: np.ndarray) -> list[tuple[int, int]]:
    """Where each turn of the policy begins and ends."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


async def test_a_sample_of_two_turns_holds_exactly_what_was_read_and_sampled(start, policy) -> None:
    talk = Talk([Turn("w7 w8 w7"), Turn(done=True)])
    worker = await start(talk)
    group = await worker.rollout(ticket())
    assert group.header.turns == (2,) * 4 and group.header.status is GroupStatus.SCORED
    assert group.header.rewards == (0.0,) * 4 and not any(group.header.truncated)
    assert talk.closed == 4
    for sample, length, replies in zip(group.samples, group.header.lengths, talk.replies, strict=True):
        (first, answered), (second, end) = stretches(sample.loss_mask)
        assert sample.turns == 2 and sample.trained_tokens == length == answered - first + end - second
        assert sample.token_ids[:first].tolist() == [5, 6] and sample.token_ids[answered:second].tolist() == [7, 8, 7]
        assert end == len(sample.token_ids)
        # The environment was told what the tokens say, without the stop text that ended them.
        for (begin, stop), reply in zip([(first, answered), (second, end)], replies, strict=True):
            ids = sample.token_ids[begin:stop].tolist()
            assert reply.split() == [
                f"w{i}" if i > 2 else "<bos>" for i in (ids if ids[-1] == 2 else ids[:-1]) if i not in (0, 2)
            ]
            request = GenerationRequest("", tuple(sample.token_ids[:begin].tolist()), 1, 100, temperature=0.8)
            part = Completion(
                sample.token_ids[begin:stop], sample.logprobs[begin:stop], sample.versions[begin:stop], "stop"
            )
            np.testing.assert_allclose(part.logprobs, policy.logprobs(request, part), atol=1e-4, rtol=0)
        outside = ~sample.loss_mask
        assert set(sample.versions[outside].tolist()) == {-1} and not sample.logprobs[outside].any()
        assert set(sample.versions[sample.loss_mask].tolist()) == {0}
    assert len({sample.token_ids.tobytes() for sample in group.samples}) > 1


async def test_several_turns_are_the_same_whenever_they_are_sampled(start) -> None:
    groups = []
    for _ in range(2):
        worker = await start(Talk([Turn("w7"), Turn("w8"), Turn(done=True)]))
        groups.append(await worker.rollout(ticket()))
    for one, other in zip(groups[0].samples, groups[1].samples, strict=True):
        assert one.turns == 3 and one.token_ids.tolist() == other.token_ids.tolist()


async def test_a_reward_of_the_environment_wins_over_the_verifier(start) -> None:
    worker = await start(Talk([Turn(done=True, reward=0.25)]))
    group = await worker.rollout(ticket())
    assert group.header.rewards == (0.25,) * 4 and group.timings["score_s"] == 0


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (RuntimeError("no luck"), "environment raised RuntimeError: no luck"),
        (Turn(done=True, reward=float("nan")), "environment returned nan"),
    ],
)
async def test_what_an_environment_does_wrong_is_an_error_and_never_a_reward(start, answer, error: str) -> None:
    talk = Talk([Turn("w7"), answer])
    group = await (await start(talk)).rollout(ticket(2))
    assert group.header.errors == (error,) * 2 and group.header.rewards == (None, None)
    assert group.header.status is GroupStatus.ERROR and group.header.turns == (2, 2) and talk.closed == 2


async def test_an_environment_that_cannot_begin_costs_only_its_own_sample(start) -> None:
    seeds = []

    def opening(seed: int) -> str:
        seeds.append(seed)
        if len(seeds) == 2:
            raise RuntimeError("no room")
        return "w5"

    group = await (await start(Talk([Turn(done=True)], opening))).rollout(ticket(3))
    assert group.header.errors == (None, "environment raised RuntimeError: no room", None)
    assert group.header.lengths[1] == 0 and group.header.turns == (1, 0, 1)
    assert len(set(seeds)) == 3


async def test_samples_that_begin_differently_are_sampled_from_their_own_beginnings(start) -> None:
    group = await (await start(Talk([Turn(done=True)], lambda seed: f"w{130 + seed % 100}"))).rollout(ticket(4))
    beginnings = [int(sample.token_ids[0]) for sample in group.samples]
    assert len(set(beginnings)) > 1
    assert [sample.index for sample in group.samples] == [0, 1, 2, 3]


async def test_an_answer_that_leaves_no_room_ends_the_sample(start) -> None:
    talk = Talk([Turn(" ".join(["w7"] * 150)), Turn(done=True)])
    group = await (await start(talk, max_model_len=110)).rollout(ticket(2))
    assert group.header.truncated == (True, True) and group.header.turns == (1, 1)
    assert all(len(sample.token_ids) < 110 for sample in group.samples)
