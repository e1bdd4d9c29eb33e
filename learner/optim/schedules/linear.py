"""A straight line down."""

from typing import Literal

from learner.optim.schedules.warm_up import Decay


class Linear(Decay):
    """Linear warm-up, then a straight line down to a share of the peak."""

    kind: Literal["linear"] = "linear"

    def left(self, progress: float) -> float:
        return 1.0 - progress
