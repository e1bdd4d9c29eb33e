"""The examples of docs/extending.md: each file in its place, each line in the registry's place, and then used."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from pydantic import Field, TypeAdapter

from actors import shaping
from actors.engines import kinds
from actors.engines.adapter_plan import AdapterPlan
from actors.engines.adapters import named_pair
from actors.engines.create import create_engine, refuse_adapters
from actors.engines.policy_files import read_policy_files
from actors.engines.protocol import GenerationRequest
from actors.environments import registry as environments
from actors.prompts.prompt import Prompt
from actors.rewards.protocol import Attempt
from actors.shaping.shaper import Shaper
from actors.verifiers import BUILT_IN, get_verifier
from actors.weights import registry as transports
from actors.weights.block import pack
from actors.weights.offer import WeightError
from learner import aggregations, corrections, losses
from learner.aggregations import Totals
from learner.batching.pack import count
from learner.batching.pack import pack as pack_groups
from learner.config import LearnerConfig
from learner.losses.objective import Objective
from moments_service import estimators
from moments_service.config import BY_NAME, MomentsConfig
from tests.conftest import ROOT
from tests.contract import test_estimators as estimator_contract
from tests.contract import test_transport as transport_contract
from tests.hub import POLICY
from tests.made_samples import made_group
from tests.unit.made_batches import made_batch
from tests.unit.test_learner_loss import batch_of, central_differences, draw

pytestmark = pytest.mark.unit

BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(), flags=re.MULTILINE | re.DOTALL
)
Example = Callable[[str], tuple[ModuleType, str]]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Example:
    """The module of a file on the page, put where the page says, and the registry's line below it."""

    def place(path: str) -> tuple[ModuleType, str]:
        (index,) = [i for i, block in enumerate(BLOCKS) if block.startswith(f"# {path}\n")]
        name = path.removesuffix(".py").replace("/", ".")
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(BLOCKS[index], path, "exec"), module.__dict__)
        return module, BLOCKS[index + 1]

    return place


def union_of(line: str, *namespaces: ModuleType) -> TypeAdapter:
    """What a recipe's section is read with once the line stands in the registry."""
    known = {name: value for module in namespaces for name, value in vars(module).items()} | {"Field": Field}
    exec(line, known)
    (name,) = re.findall(r"^(\w+) =", line)
    return TypeAdapter(known[name])


async def test_a_verifier(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    _, line = example("actors/verifiers/brackets.py")
    for name, path in eval(f"{{{line}}}").items():
        monkeypatch.setitem(BUILT_IN, name, path)
    prompt = Prompt("p", "s", "brackets, please", None, "brackets")
    attempts = [Attempt(text, index) for index, text in enumerate(("(())", "())(", "a()"))]
    verdicts = await get_verifier("brackets").judge(prompt, attempts)
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.5, 0.5]


async def test_an_environment(example: Example) -> None:
    module, line = example("actors/environments/hangman.py")
    section = union_of(line, environments, module)
    assert section.validate_python("single_turn").kind == "single_turn"
    assert section.validate_python("hangman").guesses == 8
    prompt = Prompt("p", "s", "A fruit", "fig", "exact")
    for said, reward in ((["f", "x", "i", "g"], 1.0), (["f", "x", "y"], 0.0)):
        game = section.validate_python({"kind": "hangman", "guesses": 2}).create()
        assert (await game.reset(prompt, seed=0)).text == "A fruit\n___"
        turns = [await game.step(reply, timeout_s=5.0) for reply in said]
        assert [turn.done for turn in turns] == [False] * (len(said) - 1) + [True] and turns[-1].reward == reward
        assert turns[0].text == "f__"
        await game.close()


async def test_an_engine(example: Example) -> None:
    module, line = example("actors/engines/parrot.py")
    options = union_of(line, kinds, module).validate_python({"kind": "parrot", "words": 2})
    engine = create_engine(SimpleNamespace(engine=options, gpus=0, cpus=1), "no policy", seed=0, index=0)  # type: ignore[arg-type]
    await engine.start()
    (first, second) = await engine.generate(GenerationRequest("r", (4, 7), n=2, max_tokens=5))
    assert first.token_ids.tolist() == second.token_ids.tolist() == [7, 7]
    offer, blob = pack([("weight", torch.ones(2))], version=3)
    await engine.take_weights(replace(offer, address=np.array(blob)), "keep")
    assert engine.policy_version == 3
    await engine.close()


async def test_an_engine_that_takes_adapters(example: Example) -> None:
    _, line = example("actors/engines/parrot.py")
    module, _ = example("actors/engines/parrot_with_adapters.py")
    plan = AdapterPlan(2, ".*")
    alone = SimpleNamespace(
        engine=union_of(line, kinds, sys.modules["actors.engines.parrot"]).validate_python("parrot"), gpus=0, cpus=1
    )  # type: ignore[arg-type]
    refusal = r"engine parrot takes whole policies alone \(actors.engines.parrot:Parrot has no argument `adapter`\); publish merged"
    for refuse in (refuse_adapters, lambda *given: create_engine(*given[:2], 0, 0, given[2])):
        with pytest.raises(ValueError, match=refusal):
            refuse(alone, "no policy", plan)  # type: ignore[arg-type]
    taking = SimpleNamespace(engine=module.ParrotWithAdaptersConfig(), gpus=0, cpus=1)
    refuse_adapters(taking, str(POLICY), plan)  # type: ignore[arg-type]
    engine = create_engine(taking, str(POLICY), 0, 0, plan)  # type: ignore[arg-type]
    layer, weight = next(
        (name, shape) for name, shape in read_policy_files(str(POLICY)).shapes.items() if "q_proj" in name
    )
    pair = torch.zeros(2, weight[1]), torch.zeros(weight[0], 2)
    offer, blob = pack(named_pair(layer.removesuffix(".weight"), pair), version=1)
    offer = replace(offer, address=np.array(blob))
    with pytest.raises(WeightError, match="started for adapters"):
        await engine.take_weights(offer, "keep")
    await engine.take_weights(replace(offer, kind="adapter", base_version=0), "keep")
    assert engine.policy_version == 1


async def test_a_transport(example: Example, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module, line = example("actors/weights/shared_files.py")
    section = union_of(line, transports, module)
    assert section.validate_python("object_store").kind == "object_store"
    options = {"kind": "shared_files", "directory": str(tmp_path / "weights")}
    monkeypatch.setitem(transport_contract.CASES, "shared_files", lambda _: section.validate_python(options))
    await transport_contract.test_the_bytes_arrive_as_they_were("shared_files", tmp_path)
    for keeps_to in (
        transport_contract.test_the_version_before_is_kept_for_actors_that_come_back,
        transport_contract.test_older_versions_are_there_or_released_and_what_was_opened_stays,
        transport_contract.test_a_run_that_resumes_places_versions_again,
    ):
        keeps_to("shared_files", tmp_path)
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["6.weights", "7.weights"]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_an_estimator(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    module, line = example("moments_service/estimators/median.py")
    union = eval(f"AnyEstimator {line}", vars(estimators) | vars(module))
    section = TypeAdapter(Annotated[Annotated[union, Field(discriminator="kind")], BY_NAME])
    assert section.validate_python("grpo").kind == "grpo" and section.validate_python("median").unit == 1.0
    config = MomentsConfig().model_copy(update={"estimator": section.validate_python({"kind": "median", "unit": 0.5})})
    monkeypatch.setitem(estimator_contract.CONFIGS, "median", config)
    state = estimator_contract.experienced("median")
    found = state.estimate(estimator_contract.batch_for(state, [([(0.0, 1), (0.25, 1), (None, 1), (1.0, 1)], "a", 0)]))
    np.testing.assert_array_equal(found.values, [[-0.5, 0.0, np.nan, 1.5]])
    with np.errstate(all="raise", under="ignore"):
        for keeps_to in (
            estimator_contract.test_advantages_are_finite_where_there_is_a_reward_and_nan_elsewhere,
            estimator_contract.test_a_batch_without_any_reward_is_no_accident,
            estimator_contract.test_baseline_and_scale_explain_the_advantages,
            estimator_contract.test_the_order_of_groups_does_not_matter,
            estimator_contract.test_padding_changes_nothing,
        ):
            keeps_to(name="median")


def test_a_shaping_rule(example: Example) -> None:
    module, line = example("actors/shaping/shortest.py")
    section = union_of(line, shaping, module)
    assert section.validate_python("kimi").kind == "kimi"
    rule = section.validate_python({"kind": "shortest", "bonus": 0.5})
    batch = made_batch([[1.0, 1.0, 0.0, None], [0.0, 0.0, None, None]], [[7, 5, 2, 1], [3, 4, 1, 1]])
    found = Shaper([rule], max_tokens=10)(batch)
    # The second answer has half a reward that the two others have not.
    np.testing.assert_allclose(
        found.advantages - batch.advantages, [[-0.25, 0.5, -0.25, np.nan], [0, 0, np.nan, np.nan]]
    )


def learner_with(**sections: Any) -> LearnerConfig:
    """A configuration as it is read once the sections' kinds stand in their registries."""
    return LearnerConfig().model_copy(update=sections)


def test_a_loss(example: Example) -> None:
    module, line = example("learner/losses/floored.py")
    section = union_of(line, losses, module)
    assert section.validate_python("ppo_clip").kind == "ppo_clip"
    loss = section.validate_python({"kind": "floored", "floor": -1.0})
    logprobs, old, _, advantages, entropy, weights = draw(0)
    held = (logprobs < loss.floor) & (advantages < 0)
    assert 0 < held.sum() < len(held)

    def oracle(x: np.ndarray) -> float:
        return float(-(weights * advantages * np.where(held, loss.floor, x)).sum())

    objective = Objective(learner_with(loss=loss))
    x = torch.from_numpy(logprobs.copy()).requires_grad_()
    found, measured = objective(batch_of(old, None, old, advantages, weights), x, torch.from_numpy(entropy))
    found.backward()
    assert found.item() == pytest.approx(oracle(logprobs), rel=1e-12)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), central_differences(oracle, logprobs), atol=1e-8)
    assert "held_at_floor" in objective.names.means and objective.needs == frozenset()
    np.testing.assert_array_equal(measured.means["held_at_floor"].numpy(), held)


def test_a_correction(example: Example) -> None:
    module, line = example("learner/corrections/agreeing.py")
    section = union_of(line, corrections, module)
    assert section.validate_python("none").kind == "none"
    correction = section.validate_python({"kind": "agreeing", "limit": 0.3})
    logprobs, old, _, advantages, entropy, weights = draw(1)
    rollout = old + np.linspace(-1.0, 1.0, len(old))
    left_out = np.abs(old - rollout) > 0.3
    values = []
    for config in (learner_with(correction=correction), learner_with()):
        objective = Objective(config)
        kept = weights if config.correction.kind == "agreeing" else np.where(left_out, 0.0, weights)
        batch = batch_of(old, None, rollout, advantages, kept)
        loss, measured = objective(batch, torch.from_numpy(logprobs), torch.from_numpy(entropy))
        values.append(loss.item())
        if config.correction.kind == "agreeing":
            np.testing.assert_array_equal(measured.means["left_out"].numpy(), left_out)
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_an_aggregation(example: Example) -> None:
    module, line = example("learner/aggregations/root_length.py")
    section = union_of(line, aggregations, module)
    assert section.validate_python("seq_mean_token_mean").kind == "seq_mean_token_mean"
    aggregation = section.validate_python("root_length")
    groups = [made_group("a", 3, [1, 4]), made_group("b", 2, [2, 3, 5])]
    batches = pack_groups(groups, aggregation, count(groups), version=0, share_prompt=True, microbatch_tokens=64)
    found = sorted(weight for batch in batches for weight in batch.weights[batch.mask].tolist())
    expected = [1 / (n**0.5 * size * 2) for size, n in [(2, 1), (2, 4), (3, 2), (3, 3), (3, 5)] for _ in range(n)]
    np.testing.assert_allclose(found, sorted(expected), rtol=1e-6)
    on_two_ranks = aggregation(np.array([0, 0]), np.array([0, 0]), Totals(groups=4, samples=8, tokens=16))
    np.testing.assert_allclose(on_two_ranks, [1 / (2**0.5 * 4)] * 2)
