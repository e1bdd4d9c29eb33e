"""Half a cosine down."""

import math
from typing import Literal

from learner.optim.schedules.warm_up import Decay


class Cosine(Decay):
    """Linear warm-up, then half a cosine down to a share of the peak."""

    kind: Literal["cosine"] = "cosine"

    def left(self, progress: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * progress))
