"""Long series made short enough to draw, without losing what stands out. Pure functions of arrays."""

from typing import Any

import numpy as np
import numpy.typing as npt

MOST_POINTS = 600
"""Points that a series keeps at most; wider than a chart has pixels to show."""
LEAST_WINDOW = 10
"""Steps that a trend is smoothed over at least, as in the run's summary."""
WINDOWS_PER_SERIES = 50

Floats = npt.NDArray[np.floating[Any]]
Places = npt.NDArray[np.int64]


class Thinning:
    """Which of `rows` rows are drawn: all of them, or two of each of at most `points // 2` spans of equal length."""

    def __init__(self, rows: int, points: int = MOST_POINTS) -> None:
        self.rows = rows
        self.width = 1 if rows <= points else -(-rows // (points // 2))
        starts = np.arange(0, rows, self.width)
        ends = np.minimum(starts + self.width, rows) - 1
        # A last span of one row is one point.
        self.places: Places = starts if self.width == 1 else np.unique(np.stack([starts, ends], axis=1))

    def extremes(self, values: Floats) -> Floats:
        """Smallest and largest value of each span in the order in which they occur, [len(places)].

        values: [rows], NaN where there is none; a span without any value gives NaN.
        """
        if self.width == 1:
            return values.copy()
        spans = -(-self.rows // self.width)
        filled = np.full(spans * self.width, np.nan, dtype=values.dtype)
        filled[: self.rows] = values
        grid = filled.reshape(spans, self.width)
        missing = np.isnan(grid)
        low = np.where(missing, np.inf, grid).argmin(axis=1)
        high = np.where(missing, -np.inf, grid).argmax(axis=1)
        order = np.stack([np.minimum(low, high), np.maximum(low, high)], axis=1)
        return np.take_along_axis(grid, order, axis=1).ravel()[: len(self.places)]

    def trend(self, values: Floats) -> Floats:
        """Mean of the last rows at each place, [len(places)], over a window that grows with the series."""
        window = max(LEAST_WINDOW, self.rows // WINDOWS_PER_SERIES)
        present = ~np.isnan(values)
        sums = np.concatenate([[0.0], np.cumsum(np.where(present, values, 0.0), dtype=np.float64)])
        counts = np.concatenate([[0], np.cumsum(present)])
        ends = self.places + 1
        starts = np.maximum(ends - window, 0)
        count = counts[ends] - counts[starts]
        mean = (sums[ends] - sums[starts]) / np.maximum(count, 1)
        return np.where(count > 0, mean, np.nan)


def rounded(values: Floats) -> list[float | None]:
    """Numbers for JSON: five significant ones, None for NaN and infinities."""
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    size = np.abs(np.where(finite & (numbers != 0), numbers, 1.0))
    places = 4 - np.floor(np.log10(size))
    # Powers of ten from 1 on are exact, and so is what is divided or multiplied by them; those below are not.
    finer, coarser = 10.0 ** np.clip(places, 0, 300), 10.0 ** np.clip(-places, 0, 300)
    short = np.where(
        finite, np.round(np.where(finite, numbers, 0.0) * finer / coarser) * coarser / finer, np.nan
    ).tolist()
    return short if finite.all() else [value if value == value else None for value in short]
