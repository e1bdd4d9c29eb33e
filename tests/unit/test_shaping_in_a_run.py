"""Shaping changes what is learned and nothing that is remembered; what makes no sense is refused; truncated completions can be left out."""

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from safetensors.numpy import load_file

from actors.shaping import ShapingKind
from actors.shaping.alp import Alp
from actors.shaping.arlcp import Arlcp
from actors.shaping.budget_curriculum import BudgetCurriculum
from actors.shaping.dot import Dot
from actors.shaping.drpo import Drpo
from actors.shaping.format_length import FormatLength
from actors.shaping.grpo_lambda import GrpoLambda
from actors.shaping.hapo import HapoOptions
from actors.shaping.hard_truncation import HardTruncation
from actors.shaping.kimi import Kimi
from actors.shaping.l1 import L1
from actors.shaping.laser_d import LaserDOptions
from actors.shaping.protocol import ShapingOptions
from actors.shaping.shaper import Shaper
from actors.shaping.soft_overlong import SoftOverlong
from actors.shaping.unlikeliness import Unlikeliness
from deploy.config.recipe import ConfigError, load_recipe
from learner.batching.split import masked_share, split_batch, without_truncated
from moments_service.clusters import PromptSet
from moments_service.config import ClusterConfig, MomentsConfig
from moments_service.ledger import LedgerReader
from moments_service.messages.groups import ScoredGroup
from moments_service.service import MomentsService
from tests.conftest import ROOT
from tests.unit.made_batches import made_batch

pytestmark = pytest.mark.unit

RECIPE = ROOT / "deploy" / "recipes" / "cold_start.yaml"
PROMPTS = PromptSet(
    tuple(f"prompt{n}" for n in range(12)),
    ("sums",) * 12,
    ("",) * 12,
    np.repeat(np.eye(4, dtype=np.float32), 3, axis=0),
)
MAX_TOKENS = 100
EVERY_RULE: tuple[ShapingOptions, ...] = (
    SoftOverlong(window=0.9),
    HardTruncation(max_tokens=30),
    Kimi(),
    Alp(),
    GrpoLambda(),
    HapoOptions(),
    LaserDOptions(every=1),
    Drpo(),
    L1(tokens=(40, 40), alpha=0.01),
    BudgetCurriculum(start=40),
    Unlikeliness(),
    Arlcp(),
    FormatLength(),
    Dot(),
)

OBSERVED = {rule.kind: (40.0, 10.0, 20.0, 0.5) for rule in EVERY_RULE}
"""As if a rollout actor had looked at each completion of a group."""


def sampled(step: int) -> list[ScoredGroup]:
    """Four groups of four, with an error in one of them."""
    random = np.random.default_rng(step)
    groups = []
    for place in range(4):
        rewards: list[float | None] = random.integers(0, 2, 4).astype(float).tolist()
        if place == 0:
            rewards[1] = None
        groups.append(
            ScoredGroup(
                group_id=f"prompt{3 * place}:0:{step}:0",
                prompt_id=f"prompt{3 * place}",
                source="sums",
                sequence=4 * step + place,
                rewards=tuple(rewards),
                errors=tuple("crashed" if reward is None else None for reward in rewards),
                lengths=tuple(random.integers(1, MAX_TOKENS + 1, 4).tolist()),
                truncated=(False,) * 4,
                policy_versions=(step, step),
            )
        )
    return groups


async def remembered(
    directory: Path, estimator: str, shapers: Sequence[Shaper]
) -> tuple[dict[str, bytes], list[tuple[object, ...]], list[bool]]:
    """What a service saves after three steps, what its ledger holds of groups, and whether each shaper ever changed an advantage."""
    config = MomentsConfig.model_validate({"estimator": estimator, "clusters": ClusterConfig(count=4)})
    service, changed = MomentsService(config, directory, seed=0), [False] * len(shapers)
    await service.fit_clusters(PROMPTS)
    for step in range(3):
        groups = sampled(step)
        for group in groups:
            await service.submit(group, payload=group.group_id)
        batch = await service.draw(step, [group.group_id for group in groups])
        for place, shaper in enumerate(shapers):
            shaped = shaper(batch, dict.fromkeys(batch.group_ids, OBSERVED))
            changed[place] |= not np.array_equal(shaped.advantages, batch.advantages, equal_nan=True)
        await service.commit(step, step + 1)
        for shaper in shapers:
            shaper.learn(batch)
    (directory / "snapshot").mkdir()
    await service.snapshot(directory / "snapshot")
    await service.close()
    saved = {
        f"{path.name}: {name}": array.tobytes()
        for path in (directory / "snapshot").glob("*.safetensors")
        for name, array in load_file(path).items()
    }
    with closing(LedgerReader(directory)) as ledger:
        rows = ledger.folded((0, 0, 2), "group_id, cluster, rewards, lengths", "advantages, baseline, scale, weight")
    return saved, rows, changed


def test_every_rule_is_among_those() -> None:
    assert {type(rule) for rule in EVERY_RULE} == set(get_args(ShapingKind))


@pytest.mark.parametrize("estimator", ["hierarchical", "grpo"])
async def test_ledger_and_moments_are_the_same_bits_with_and_without_shaping(tmp_path: Path, estimator: str) -> None:
    saved, rows, _ = await remembered(tmp_path / "without", estimator, ())
    shapers = [Shaper([rule], MAX_TOKENS) for rule in EVERY_RULE]
    shaped_saved, shaped_rows, changed = await remembered(tmp_path / "with", estimator, shapers)
    assert len(saved) > 3 and shaped_saved == saved
    assert len(rows) == 12 and shaped_rows == rows
    assert dict(zip([rule.kind for rule in EVERY_RULE], changed, strict=True)) == dict.fromkeys(OBSERVED, True)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (["shaping=[soft_overlong, soft_overlong]"], "soft_overlong stands there twice; one of each kind is enough"),
        (["shaping=[soft_overlong]", "group_size=1"], "group_size = 1 leaves nothing to compare; raise group_size"),
        (["shaping=[{kind: soft_overlong, max_tokens: 17}]"], "max_tokens = 17, more than sampling.max_tokens = 10"),
        (["shaping=[kimi, alp]"], "kimi and alp pay for the same lengths, each in its own way"),
        (["shaping=[hard_truncation]", "learner.mask_truncated=true"], "takes the reward of completions of 10 tokens"),
        (["shaping=[format_length, unlikeliness]"], "in the place of the reward that unlikeliness would shape"),
        (["shaping=[{kind: l1, tokens: [5, 20]}]"], "budgets of up to 20 tokens, more than sampling.max_tokens = 10"),
        (["shaping=[{kind: l1, tokens: [5, 9]}]", "rollout.max_model_len=80"], "raise the latter"),
        (["shaping=[dot]"], "in a group of 2 no length is so far out; raise group_size to 11 or more"),
        (["shaping=[dot]", "group_size=16", "prompts.filter=dapo"], "which prompts.filter = dapo passes by"),
        (["shaping=[soft_overlong]", "rewards.range=[-1, 0.5]"], "rewards.range ends at 0.5; scale the reward"),
    ],
)
def test_shaping_that_makes_no_sense_is_refused(settings: list[str], what: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(what)):
        load_recipe(RECIPE, settings)


@pytest.mark.parametrize(
    "settings",
    [
        ["shaping=[soft_overlong, kimi, unlikeliness]"],
        ["shaping=kimi"],
        ["shaping={kind: kimi, weight: 0.5}"],
        ["shaping=[{kind: l1, tokens: [5, 10]}]", "rollout.max_model_len=1024"],
        ["shaping=[dot]", "group_size=8", "max_group_size=16"],
        ["shaping=[format_length]", "rewards.range=[0, 0.5]"],
        ["shaping=[{kind: hard_truncation, max_tokens: 9}]", "learner.mask_truncated=true"],
    ],
)
def test_shaping_that_makes_sense_is_taken(settings: list[str]) -> None:
    load_recipe(RECIPE, settings)


def test_truncated_completions_can_be_left_out_of_the_loss() -> None:
    batch = made_batch([[1.0, 0.0, None], [0.0, 0.0]], [[9, 16, 16], [16, 16]], [[False, True, True], [True, True]])
    found = without_truncated(batch)
    np.testing.assert_array_equal(found.advantages, [[0.5, np.nan, np.nan], [np.nan, np.nan, np.nan]])
    assert masked_share(batch) == 3 / 4
    # The group of which nothing is left goes to no rank, and the batch that becomes history has all of its rewards.
    assert split_batch(found, updates=1, world_size=1) == [[[0]]]
    np.testing.assert_array_equal(batch.table.rewards, [[1.0, 0.0, np.nan], [0.0, 0.0, np.nan]])
