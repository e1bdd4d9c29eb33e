"""A constant learning rate."""

from typing import Literal

from learner.optim.schedules.warm_up import WarmUp


class Constant(WarmUp):
    """Linear warm-up, then the peak for good."""

    kind: Literal["constant"] = "constant"
