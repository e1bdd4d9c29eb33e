"""How groups ended, in the words that a person searches by. Pure functions of arrays."""

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from moments_service.estimators.base import SIGNAL_FLOOR
from moments_service.messages.groups import FULL_REWARD

Floats = npt.NDArray[np.floating[Any]]


class Outcome(IntEnum):
    """What the rewards of a group look like."""

    MIXED = 0
    """They differ: GRPO learns from it too."""
    SOLVED = 1
    """Every completion solved it."""
    UNSOLVED = 2
    """All rewards are the same, and not full."""
    ERROR = 3
    """No completion has a reward."""
    LOST = 4
    """Its payload died, or it was closed without training."""


def outcomes(rewards: Floats, closed: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Outcome of each group, [N]. rewards: [N, G], NaN where there is none.    closed: [N], not trained on."""
    known = ~np.isnan(rewards)
    low = np.where(known, rewards, np.inf).min(axis=1, initial=np.inf)
    high = np.where(known, rewards, -np.inf).max(axis=1, initial=-np.inf)
    scored = known.any(axis=1)
    kinds = np.where(high > low, Outcome.MIXED, np.where(low >= FULL_REWARD, Outcome.SOLVED, Outcome.UNSOLVED))
    kinds = np.where(scored, np.where(closed, Outcome.LOST, kinds), Outcome.ERROR)
    return kinds.astype(np.uint8)


def rescued(rewards: Floats, advantages: Floats) -> npt.NDArray[np.bool_]:
    """Groups that carry signal although GRPO would have wasted them, [N]. Both [N, G], NaN where there is none."""
    known = ~np.isnan(rewards)
    low = np.where(known, rewards, np.inf).min(axis=1, initial=np.inf)
    high = np.where(known, rewards, -np.inf).max(axis=1, initial=-np.inf)
    pushed = np.abs(np.nan_to_num(advantages)).max(axis=1, initial=0.0) > SIGNAL_FLOOR
    return pushed & (low == high)
