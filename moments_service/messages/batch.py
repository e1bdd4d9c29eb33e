"""What one policy step trains on."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.health import Alarm
from moments_service.messages.table import GroupTable


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

    @property
    def group_ids(self) -> tuple[str, ...]:
        return self.table.group_ids
