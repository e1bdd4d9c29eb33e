"""What estimators remember of single prompts: numbers by prompt id."""

from collections.abc import Iterable, Sequence

import numpy as np

from moments_service.blend import Array
from moments_service.moments import Indices

UNSEEN = -1
IDS = "prompt_ids"


class PromptTable:
    """One row for each prompt ever entered, in the order of entering; its columns grow by doubling.

    `initial` names the columns and says what a prompt that was never entered reads there.
    Ids are saved as utf-8 in the rows of one matrix, padded with zeros, so an id must not end in a zero byte.
    """

    def __init__(self, initial: dict[str, float]) -> None:
        self._initial = initial
        self._rows: dict[str, int] = {}
        self._columns = {name: np.zeros(0) for name in initial}

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, prompts: Sequence[str]) -> Indices:
        """[P] row of each prompt, UNSEEN where it was never entered."""
        return np.array([self._rows.get(prompt, UNSEEN) for prompt in prompts], dtype=np.int64)

    def enter(self, prompts: Iterable[str]) -> Indices:
        """[P] row of each prompt, made where there was none."""
        rows = [self._rows.setdefault(prompt, len(self._rows)) for prompt in prompts]
        for name, column in self._columns.items():
            if len(column) < len(self):
                grown = np.full(max(len(self), 2 * len(column)), self._initial[name])
                grown[: len(column)] = column
                self._columns[name] = grown
        return np.array(rows, dtype=np.int64)

    def read(self, name: str, rows: Indices) -> Array:
        """[P] values of a column at `rows`, the initial one where UNSEEN."""
        values = np.full(len(rows), self._initial[name])
        values[rows != UNSEEN] = self._columns[name][rows[rows != UNSEEN]]
        return values

    def write(self, name: str, rows: Indices, values: Array | float) -> None:
        """Set a column at `rows`, which `enter` gave."""
        self._columns[name][rows] = values

    def state(self) -> dict[str, np.ndarray]:
        """The columns, [N], and `prompt_ids`, [N, longest id] uint8."""
        encoded = [prompt.encode() for prompt in self._rows]
        ids = np.zeros((len(encoded), max(map(len, encoded), default=0)), dtype=np.uint8)
        for row, prompt in enumerate(encoded):
            ids[row, : len(prompt)] = np.frombuffer(prompt, dtype=np.uint8)
        return {IDS: ids} | {name: column[: len(self)].copy() for name, column in self._columns.items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on from `state`. Raises ValueError if its columns are others."""
        require_names(state, {IDS, *self._columns})
        prompts = [bytes(row).rstrip(b"\0").decode() for row in state[IDS]]
        self._rows = {prompt: row for row, prompt in enumerate(prompts)}
        self._columns = {name: np.array(state[name], dtype=np.float64) for name in self._columns}


def require_names(state: dict[str, np.ndarray], expected: set[str]) -> None:
    """Raise ValueError unless a saved memory holds just the arrays that the estimator knows."""
    if set(state) != expected:
        raise ValueError(
            f"the saved memory of another estimator: it holds {', '.join(sorted(state)) or 'nothing'}, "
            f"not {', '.join(sorted(expected))}"
        )


def clipped_scores(rewards: Array) -> tuple[Array, Array]:
    """Successes and failures of each group, [M] each: sums of x and of 1 - x, x the rewards clipped to [0, 1]."""
    valid = ~np.isnan(rewards)
    scores = np.clip(np.where(valid, rewards, 0.0), 0.0, 1.0)
    successes = scores.sum(axis=1)
    return successes, np.where(valid, 1.0 - scores, 0.0).sum(axis=1)


def scores_by_prompt(prompts: Sequence[str], rewards: Array) -> tuple[tuple[str, ...], Array, Array]:
    """The prompts of a batch that have a reward, sorted, with their successes and failures over all of their groups.

    prompts: M ids.    rewards: [M, G]. Sorting makes what is remembered independent of the order of groups.
    """
    successes, failures = clipped_scores(rewards)
    names, summed = sums_by_prompt(prompts, rewards, successes, failures)
    return names, summed[0], summed[1]


def sums_by_prompt(prompts: Sequence[str], rewards: Array, *columns: Array) -> tuple[tuple[str, ...], list[Array]]:
    """The prompts of a batch that have a reward, sorted, with the sums of other columns, [M] each, over all of their groups."""
    groups = np.flatnonzero((~np.isnan(rewards)).any(axis=1))
    names = sorted({prompts[m] for m in groups.tolist()})
    row = {prompt: i for i, prompt in enumerate(names)}
    at = np.array([row[prompts[m]] for m in groups.tolist()], dtype=np.int64)
    summed = [np.bincount(at, weights=column[groups], minlength=len(names)).astype(np.float64) for column in columns]
    return tuple(names), summed
