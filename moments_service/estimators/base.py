"""What every advantage estimator takes and gives."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.moments import History

SIGNAL_FLOOR = 1e-6
"""Advantages below this magnitude teach nothing."""


@dataclass(frozen=True, slots=True)
class Advantages:
    """The advantages of M groups and what they were made of: A = (r - baseline) / scale.

    values: [M, G], NaN where a completion has no reward.    baseline, scale: [M].
    weight: [M], trust in history; 0 for estimators without history.
    """

    values: Array
    baseline: Array
    scale: Array
    weight: Array

    def carries_signal(self) -> npt.NDArray[np.bool_]:
        """[M]: whether any completion of the group is pushed anywhere."""
        return np.nanmax(np.abs(np.nan_to_num(self.values)), axis=1, initial=0.0) > SIGNAL_FLOOR


Estimator = Callable[[Array, History], Advantages]
"""Turns the rewards of a batch into advantages; what it may remember comes in as history.

First argument: [M, G] raw verifier rewards, NaN where there is none. Second: the moments of each group's cluster before
this batch, [M] rows.
"""
