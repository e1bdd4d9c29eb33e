"""Batches that no moments service drew, for tests of shaping."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moments_service.messages.batch import Batch
from moments_service.messages.groups import ScoredGroup
from moments_service.messages.table import GroupTable

Rewards = Sequence[Sequence[float | None]]


def made_batch(
    rewards: Rewards,
    lengths: Sequence[Sequence[int]],
    truncated: Sequence[Sequence[bool]] | None = None,
    prompts: Sequence[str] | None = None,
    step: int = 0,
) -> Batch:
    """Groups with these rewards and lengths; the advantage of each completion is its reward less the mean of its group."""
    headers = []
    for row, group in enumerate(rewards):
        fields: dict[str, Any] = {
            "group_id": f"{row}:0:{step}:0",
            "prompt_id": str(row) if prompts is None else prompts[row],
            "source": "made",
            "sequence": row,
            "rewards": tuple(group),
            "errors": tuple("timeout" if reward is None else None for reward in group),
            "lengths": tuple(lengths[row]),
            "truncated": (False,) * len(group) if truncated is None else tuple(truncated[row]),
            "policy_versions": (step, step),
        }
        headers.append(ScoredGroup(**fields))
    table, nothing = GroupTable.of(headers), np.zeros(len(headers))
    means = np.nanmean(table.rewards, axis=1)
    return Batch(
        step=step,
        table=table,
        payloads=tuple(headers),
        clusters=nothing.astype(np.int64),
        advantages=table.rewards - means[:, None],
        baseline=means,
        scale=nothing + 1.0,
        weight=nothing,
    )
