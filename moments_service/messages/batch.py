"""What one policy step trains on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.health import Alarm
from moments_service.messages.groups import BlendedGroup
from moments_service.messages.table import GroupTable, padded


@dataclass(frozen=True, slots=True)
class Batch:
    """M groups with their advantages, which come from the state before this batch. All columns have M rows."""

    step: int
    table: GroupTable
    payloads: tuple[Any, ...]
    """The opaque handles given at `submit` (Ray ObjectRefs in a run); only the learner opens them."""
    clusters: npt.NDArray[np.int64]
    advantages: Array
    """[M, G], NaN where there was no reward."""
    baseline: Array
    scale: Array
    weight: Array
    """Trust in the cluster's history, in [0, 1]; 0 for estimators without history."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Rewards, signal ratios and the GRPO counterfactual of this batch."""
    alarms: tuple[Alarm, ...] = ()
    """What looks broken in it."""

    @classmethod
    def of(cls, step: int, groups: Sequence[BlendedGroup]) -> "Batch":
        """A batch of given groups."""
        table = GroupTable.of([blended.group for blended in groups])
        return cls(
            step=step,
            table=table,
            payloads=tuple(blended.payload for blended in groups),
            clusters=np.array([blended.cluster for blended in groups], dtype=np.int64),
            advantages=padded([blended.advantages for blended in groups], table.rewards.shape[1], np.nan),
            baseline=np.array([blended.baseline for blended in groups]),
            scale=np.array([blended.scale for blended in groups]),
            weight=np.array([blended.weight for blended in groups]),
        )

    @property
    def group_ids(self) -> tuple[str, ...]:
        return self.table.group_ids

    @property
    def groups(self) -> tuple[BlendedGroup, ...]:
        """Every group as a message of its own."""
        return tuple(self._group(row) for row in range(len(self.table)))

    def _group(self, row: int) -> BlendedGroup:
        header = self.table.group(row)
        advantages = self.advantages[row, : len(header.rewards)].tolist()
        return BlendedGroup(
            group=header,
            payload=self.payloads[row],
            cluster=int(self.clusters[row]),
            advantages=tuple(
                None if reward is None else advantage
                for reward, advantage in zip(header.rewards, advantages, strict=True)
            ),
            baseline=float(self.baseline[row]),
            scale=float(self.scale[row]),
            weight=float(self.weight[row]),
        )
