"""Two ranks learn what one learns: every loss, aggregation, mask and correction, groups of uneven size, and more ranks than groups."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist

from learner.aggregations import AggregationKind
from learner.config import LearnerConfig
from learner.corrections import CorrectionKind
from learner.job import LearnerJob
from learner.losses import LossKind
from learner.rank import LearnerRank
from tests.made_samples import ScoredSamples, made_group
from tests.unit.test_learner_checkpoints import RankProcesses
from tests.unit.test_learner_rank import TOTAL_STEPS, make_policy

pytestmark = pytest.mark.unit

MASKS = [
    {"kind": "clip_cov", "share": 0.2, "low": 0.0},
    {"kind": "kl_cov", "share": 0.2},
    "opsm",
    {"kind": "capo", "fisher": 9.0, "hessian": 9.0},
]
WIDE = {"clip_low": 0.2, "clip_high": 0.2}
"""Wider than usual: these policies move so far in one update that whole samples would be clipped."""
KEEPS_SOME = {"icepop": {"low": 0.025}, "mis": {"low": 0.025, "level": "geometric"}}
"""The log-probs of made samples are so much higher than the policy's that the usual ranges hold nothing."""
Section = dict[str, Any]


def kinds_of(union: Any) -> list[str]:
    return [kind.model_fields["kind"].default for kind in get_args(union)]


EVERY: list[Section] = [
    *({"loss": {"kind": kind} | (WIDE if kind in ("gspo", "luspo") else {})} for kind in kinds_of(LossKind)),
    *(
        {"aggregation": {"kind": kind} | ({"length": 9} if kind.endswith("norm") else {})}
        for kind in kinds_of(AggregationKind)
    ),
    {"loss": {"kind": "gspo"} | WIDE, "masks": MASKS},
    {"loss": "reinforce", "kl": {"coef": 0.1, "estimator": "k3_k2"}},
    *({"correction": {"kind": kind} | KEEPS_SOME.get(kind, {})} for kind in kinds_of(CorrectionKind)),
    *({"old_logprobs": old} for old in ("rollout", "interpolate")),
]
MOST: list[Section] = [
    {"loss": {"kind": "gspo"} | WIDE, "masks": MASKS, "aggregation": "token_mean"},
    {"loss": {"kind": "luspo"} | WIDE},
    {"old_logprobs": "average", "correction": {"kind": "tis", "level": "sequence"}},
]


def groups_of(step: int) -> list[ScoredSamples]:
    """Three groups of 1 to 5 samples; at step 1 a single one."""
    sizes = [[5, 2, 7], [3], [1, 4, 2, 6, 2]] if step == 0 else [[4, 1, 6]]
    return [made_group(f"{step}-{i}", 3 + i, lengths, seed=step) for i, lengths in enumerate(sizes)]


def learned(path: str, section: Section, store: str, number: int, ranks: int) -> list[dict[str, float]]:
    """Metrics of two policy steps of two updates each, on groups that the first rank has most of."""
    torch.set_num_threads(1)
    config = LearnerConfig.model_validate(
        {
            "world_size": ranks,
            "updates_per_batch": 2,
            "microbatch_tokens": 24,
            "optimizer": {"kind": "adamw", "lr": 1e-3},
        }
        | section
    )
    rank = LearnerRank(config, LearnerJob(path, TOTAL_STEPS), number, ranks)
    rank._store = dist.FileStore(store, ranks) if ranks > 1 else None
    try:
        rank.setup("127.0.0.1", 0, timeout_s=300.0)
        found = []
        for step in range(2):
            groups = groups_of(step)
            own = groups if ranks == 1 else [groups[:2], groups[2:]][number]
            metrics = rank.step([own, own], step)
            found.append({name: value for name, value in metrics.items() if not name.endswith(("_s", "microbatches"))})
        return found
    finally:
        rank.close()


def hold_to_one(path: str, section: Section, store: Path, processes: RankProcesses) -> None:
    alone = learned(path, section, "", 0, 1)
    calls = [process.submit(learned, path, section, str(store), number, 2) for number, process in enumerate(processes)]
    first, second = (call.result(timeout=300) for call in calls)
    assert first == second
    for found, expected in zip(first, alone, strict=True):
        assert expected["updates"] == 2.0 and expected["grad_norm"] > 0
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("section", MOST, ids=str)
def test_two_ranks_learn_what_one_learns(section: Section, tmp_path: Path, rank_processes: RankProcesses) -> None:
    hold_to_one(make_policy(tmp_path / "policy"), section, tmp_path / "store", rank_processes)


@pytest.mark.long
@pytest.mark.parametrize("section", EVERY, ids=str)
def test_two_ranks_learn_what_one_learns_by_everything(
    section: Section, tmp_path: Path, rank_processes: RankProcesses
) -> None:
    hold_to_one(make_policy(tmp_path / "policy"), section, tmp_path / "store", rank_processes)
