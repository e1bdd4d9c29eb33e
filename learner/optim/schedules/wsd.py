"""Warm-up, stable, decay."""

from typing import Literal

from pydantic import Field

from learner.optim.schedules.warm_up import Decay


class Wsd(Decay):
    """Linear warm-up, the peak for most of the run, then a straight line down at its end (WSD: MiniCPM, arXiv 2404.06395)."""

    kind: Literal["wsd"] = "wsd"
    decay_share: float = Field(0.2, gt=0, le=1)
    """Share of the optimiser steps after the warm-up that the way down takes."""

    def left(self, progress: float) -> float:
        return min(1.0, (1.0 - progress) / self.decay_share)
