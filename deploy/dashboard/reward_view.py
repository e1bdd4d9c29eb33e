"""How rewards were spread at steps from a run's first to its last, read from its ledger."""

from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.dashboard.group_view import superseded
from deploy.rundir.groups import Wanted
from deploy.rundir.open_run import NoLedgerError, OpenRun

STEPS_SHOWN = 40
"""Steps that are looked at, evenly spaced, however long the run."""
GROUPS_A_STEP = 64
"""Groups of each that are read: the last of its feed."""
MOST_VALUES = 8
"""Different rewards that get a bin each; more of them share bins of equal width."""
BINS = 10

Floats = npt.NDArray[np.float64]


def spread(run: OpenRun) -> dict[str, Any]:
    """{steps, bins, shares, unscored}: shares [steps][bins] of completions, unscored [steps] the share without a reward.

    bins: [lowest, highest] reward of each, in order. Only steps that the run's state stands on; all empty before there are any.
    """
    by_step = _rewards(run)
    known = [rewards[np.isfinite(rewards)] for rewards in by_step.values()]
    bins, numbers = _binned(np.concatenate(known)) if known else ([], np.zeros(0, dtype=np.int64))
    of_step = np.split(numbers, np.cumsum([len(rewards) for rewards in known])[:-1]) if known else []
    sizes = [len(rewards) for rewards in by_step.values()]
    return {
        "steps": list(by_step),
        "bins": bins,
        "shares": [
            (np.bincount(found, minlength=len(bins)) / size).tolist()
            for found, size in zip(of_step, sizes, strict=True)
        ],
        "unscored": [1.0 - len(rewards) / size for rewards, size in zip(known, sizes, strict=True)],
    }


def _rewards(run: OpenRun) -> dict[int, Floats]:
    """Rewards by step, NaN for none."""
    try:
        groups = run.groups()
    except NoLedgerError:
        return {}
    incarnations = groups.incarnations()
    last = max((one.last_step for one in incarnations if one.last_step is not None), default=None)
    if last is None:
        return {}
    found = {}
    for step in np.unique(np.linspace(0, last, STEPS_SHOWN).astype(np.int64)).tolist():
        places = groups.search(Wanted(step=step), limit=GROUPS_A_STEP)
        standing = [place for place in places if not superseded(incarnations, place.incarnation, step)]
        if standing:
            of_groups = chain.from_iterable(row.group.rewards for row in groups.folded(standing))
            found[step] = np.array(list(of_groups), dtype=np.float64)
    return found


def _binned(rewards: Floats) -> tuple[list[list[float]], npt.NDArray[np.int64]]:
    """Bins, and the number of the bin of each reward."""
    values = np.unique(rewards)
    if len(values) <= MOST_VALUES:
        return [[value, value] for value in values.tolist()], np.searchsorted(values, rewards)
    place = np.linspace(0.0, 1.0, BINS + 1)
    edges = values[0] * (1.0 - place) + values[-1] * place  # the width itself might be past the largest float
    numbers = np.searchsorted(edges[1:-1], rewards, side="right")
    return np.stack([edges[:-1], edges[1:]], axis=1).tolist(), numbers
