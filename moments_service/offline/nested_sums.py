"""Sums of squares of rewards in groups in cells in windows, and what to expect of them: Henderson's first method.

Sizes may differ at every level. Source: Searle, Casella, McCulloch, Variance Components (1992), 3.6 and 5.3.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.moments import Indices
from moments_service.offline.logged_rewards import LoggedRewards


@dataclass(frozen=True, slots=True)
class Cells:
    """Sums over the units of each cell (a cluster in a window). All [C]."""

    units: Array
    count: Array
    total: Array
    squares_within: Array
    freedom: Array
    squares_between: Array
    """Of the units' means about the cell's, weighted by their rewards."""
    spare: Array
    """What the expectation of `squares_between` has of the variance between prompts: N - sum of n^2 / N."""
    squared_counts: Array


@dataclass(frozen=True, slots=True)
class Units:
    """What is compared inside of a cell: groups, as of different prompts. All [U] but the last two.

    Where prompts come again inside of a window, this takes `between` for too small by about one part in the cell's prompts.
    In a log of single completions nothing but a prompt's several ones says how its rewards vary: a unit is all of those in a
    window.
    """

    prompt: Indices
    cell: Indices
    count: Array
    mean: Array
    squares_within: Array
    freedom: Array
    cluster_of_cell: Indices
    window_of_cell: Indices

    @classmethod
    def of(cls, log: LoggedRewards, offset: float) -> "Units":
        windows = log.windows()
        clusters, prompts = int(log.clusters.max()) + 1, int(log.prompts.max()) + 1
        valid = ~np.isnan(log.rewards)
        clean = np.where(valid, log.rewards - offset, 0.0)
        count = valid.sum(axis=1).astype(np.float64)
        mean = clean.sum(axis=1) / count
        squares = (np.where(valid, clean - mean[:, None], 0.0) ** 2).sum(axis=1)
        alone = bool((count < 2).all())
        keys = windows * prompts + log.prompts if alone else np.arange(len(count))
        unit_keys, unit = np.unique(keys, return_inverse=True)

        def total(values: Array) -> Array:
            return summed(unit, values, len(unit_keys))

        counts = total(count)
        means = total(count * mean) / counts
        squares_within, freedom = (total((mean - means[unit]) ** 2), counts - 1.0) if alone else (squares, count - 1.0)
        first = np.full(len(unit_keys), len(unit), dtype=np.int64)
        np.minimum.at(first, unit, np.arange(len(unit)))
        cell_keys, cell = np.unique(windows[first] * clusters + log.clusters[first], return_inverse=True)
        return cls(
            log.prompts[first],
            cell,
            counts,
            means,
            squares_within,
            freedom,
            cell_keys % clusters,
            cell_keys // clusters,
        )

    def cells(self, weights: npt.NDArray[np.int64] | None) -> Cells:
        """Sums by cell; weights: how often each prompt counts, once each if None."""
        weight = np.ones(len(self.cell)) if weights is None else weights[self.prompt].astype(np.float64)

        def total(values: Array) -> Array:
            return summed(self.cell, weight * values, len(self.cluster_of_cell))

        count, sums, squared_counts = total(self.count), total(self.count * self.mean), total(self.count**2)
        safe = np.where(count > 0, count, 1.0)
        return Cells(
            units=total(np.ones(len(self.cell))),
            count=count,
            total=sums,
            squares_within=total(self.squares_within),
            freedom=total(self.freedom),
            squares_between=total(self.count * self.mean**2) - sums**2 / safe,
            spare=count - squared_counts / safe,
            squared_counts=squared_counts,
        )

    def shuffled(self, rng: np.random.Generator) -> "Units":
        """Prompts put into the cells of their window at random, as many into each as before."""
        cell = self.cell.copy()
        for window in np.unique(self.window_of_cell):
            inside = np.flatnonzero(self.window_of_cell[cell] == window)
            cell[inside] = rng.permutation(cell[inside])
        return Units(
            self.prompt,
            cell,
            self.count,
            self.mean,
            self.squares_within,
            self.freedom,
            self.cluster_of_cell,
            self.window_of_cell,
        )


def variance_across(cells: Cells, window: Indices, within: float, between: float) -> float:
    """Variance of the clusters' means about their window's: what the lower levels do not explain of it."""

    def total(values: Array) -> Array:
        return summed(window, values, 0)

    safe = np.where(cells.count > 0, cells.count, 1.0)
    count, sums = total(cells.count), total(cells.total)
    whole = np.where(count > 0, count, 1.0)
    squares = total(cells.total**2 / safe) - sums**2 / whole
    beyond = np.maximum(total((cells.count > 0).astype(np.float64)) - 1.0, 0.0)
    of_prompts = total(cells.squared_counts / safe) - total(cells.squared_counts) / whole
    spare = (count - total(cells.count**2) / whole).sum()
    if spare <= 0:
        return float("nan")
    return float((squares.sum() - within * beyond.sum() - between * of_prompts.sum()) / spare)


def summed(places: Indices, values: Array, length: int) -> Array:
    """[length]: the values at each place summed up."""
    return np.bincount(places, weights=values, minlength=length).astype(np.float64)
