"""How groups ended, in the words that a person searches by. Pure functions of arrays."""

from enum import StrEnum

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.messages.groups import FULL_REWARD

Flags = npt.NDArray[np.bool_]


class Outcome(StrEnum):
    """What the rewards of a group look like."""

    MIXED = "mixed"
    """They differ: GRPO learns from it too."""
    SOLVED = "solved"
    """Every completion solved it."""
    UNSOLVED = "unsolved"
    """All rewards are the same, and not full."""
    ERROR = "error"
    """No completion has a reward."""
    LOST = "lost"
    """Its payload died, or it was closed without training."""


def outcomes(rewards: Array, closed: Flags | bool) -> list[str]:
    """Outcome of each group, N of them. rewards: [N, G], NaN where there is none.    closed: [N] or all, not trained on."""
    low, high = _range(rewards)
    kinds = np.where(high > low, Outcome.MIXED, np.where(low >= FULL_REWARD, Outcome.SOLVED, Outcome.UNSOLVED))
    kinds = np.where(low <= high, np.where(closed, Outcome.LOST, kinds), Outcome.ERROR)
    names: list[str] = kinds.tolist()
    return names


def uniform(rewards: Array) -> Flags:
    """Groups whose rewards are all the same, [N]. rewards: [N, G], NaN where there is none."""
    low, high = _range(rewards)
    return low == high


def mean_rewards(rewards: Array) -> list[float | None]:
    """Mean reward of each group, N of them; None without any. rewards: [N, G], NaN where there is none."""
    known = ~np.isnan(rewards)
    counts = known.sum(axis=1)
    means = np.where(known, rewards, 0.0).sum(axis=1) / np.maximum(counts, 1) + 0.0  # SQLite has no -0.0
    return [mean if count else None for mean, count in zip(means.tolist(), counts.tolist(), strict=True)]


def _range(rewards: Array) -> tuple[Array, Array]:
    """Lowest and highest reward of each group; lowest above highest where there is none."""
    known = ~np.isnan(rewards)
    low = np.where(known, rewards, np.inf).min(axis=1, initial=np.inf)
    return low, np.where(known, rewards, -np.inf).max(axis=1, initial=-np.inf)
