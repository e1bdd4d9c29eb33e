"""metrics.jsonl as columns: read once, followed while it grows, a few bytes a number."""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.rundir.lines import parsed
from deploy.rundir.reading import open_file, reason
from deploy.rundir.thinning import MOST_POINTS, Floats, Places, Thinning, rounded

_CHUNK_BYTES = 2 * 2**20
_MOST_BYTES = 2**30
"""Of the columns of one file; a million steps of 250 series."""
_MOST_SERIES = 2000
"""A file with more names than this is no metrics file; what comes after them is left out."""


class MetricsIndex:
    """Columns of one metrics.jsonl. Safe from several threads.

    Rows are in order of their steps. Where a resumed run writes a step again, it and all that followed it before go: that
    is the history which the run stands on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._clear()

    def catch_up(self, budget_s: float) -> bool:
        """Read what is new for about `budget_s` seconds. Returns whether the end of the file was reached."""
        deadline = time.monotonic() + budget_s
        while not (done := self._read_chunk()) and time.monotonic() < deadline:
            pass
        return done

    @property
    def version(self) -> int:
        """Grows whenever anything was read."""
        return self._version

    @property
    def share_read(self) -> float:
        """How much of the file is in here, in [0, 1]."""
        return min(self._offset / self._size, 1.0) if self._size else 1.0

    @property
    def rows(self) -> int:
        return self._rows

    @property
    def last_row(self) -> dict[str, Any]:
        """The newest line as it stands in the file; empty before the first."""
        return self._last_row

    @property
    def bad_lines(self) -> int:
        """Lines that are no JSON object with a step; they are left out."""
        return self._bad_lines

    @property
    def problem(self) -> str | None:
        """Why the file cannot be read; None where it can."""
        return self._problem

    @property
    def cut(self) -> str | None:
        """That not all of the file is in here; None where it is."""
        if not self._cut:
            return None
        return f"{self._path.name}: only its first {self._rows:,} steps are shown; the rest would take too much memory"

    @property
    def nbytes(self) -> int:
        return self._steps.nbytes + sum(column.nbytes for column in self._columns.values())

    def names(self) -> list[str]:
        """Every series that has a value, sorted. Phases are `phases/…`, in seconds."""
        return sorted(self._columns)

    def mean_of_last(self, name: str, rows: int) -> float | None:
        """Mean of a series over its last rows; None where it has none."""
        with self._lock:
            column = self._columns.get(name)
            values = np.zeros(0) if column is None else column[max(0, self._rows - rows) : self._rows]
            values = values[~np.isnan(values)]
            return float(values.mean()) if len(values) else None

    def series(
        self, names: Sequence[str], first_step: int = 0, last_step: int = 2**62, points: int = MOST_POINTS
    ) -> dict[str, Any]:
        """Series between two steps, thinned to at most `points`: {steps, rows, series: {name: {values, trend}}}.

        Unknown names are left out.
        """
        with self._lock:
            steps = self._steps[: self._rows]
            low, high = np.searchsorted(steps, [first_step, min(last_step, 2**62) + 1]).tolist()
            thinning = Thinning(high - low, points)
            found = {}
            for name in names:
                if (column := self._columns.get(name)) is not None:
                    values = column[low:high]
                    found[name] = {
                        "values": rounded(thinning.extremes(values)),
                        "trend": rounded(thinning.trend(values)),
                    }
            return {"steps": steps[low:high][thinning.places].tolist(), "rows": high - low, "series": found}

    def _clear(self) -> None:
        self._offset = self._size = self._rows = self._version = self._bad_lines = 0
        self._steps: Places = np.zeros(0, dtype=np.int64)
        self._columns: dict[str, Floats] = {}
        self._last_row: dict[str, Any] = {}
        self._in_long_line = False
        self._problem: str | None = None
        self._cut = False

    def _read_chunk(self) -> bool:
        with self._lock:
            try:
                chunk = self._new_bytes()
            except FileNotFoundError:
                return True
            except OSError as error:
                self._problem = reason(error)
                return True
            if chunk is None:
                return False
            whole = chunk[: chunk.rfind(b"\n") + 1]
            if not whole and len(chunk) < _CHUNK_BYTES:
                return True  # nothing, or half a line: its writer is not done
            if self.nbytes > _MOST_BYTES:
                self._cut = True
                return True
            if not whole:
                whole = chunk  # in a line that is longer than any that a run writes
                self._in_long_line = True
            else:
                first, self._in_long_line = (1 if self._in_long_line else 0), False
                self._bad_lines += first
                rows = [row for line in whole.splitlines()[first:] if (row := self._parsed(line)) is not None]
                self._take(rows)
            self._offset += len(whole)
            self._version += 1
            return self._offset >= self._size

    def _new_bytes(self) -> bytes | None:
        """What comes next in the file, at most a chunk; None where another file has its name, and all is read anew."""
        with open_file(self._path) as file:
            found = os.fstat(file.fileno())
            self._problem = None
            self._size = found.st_size
            if self._size < self._offset:
                self._clear()
                return None
            file.seek(self._offset)
            return file.read(_CHUNK_BYTES)

    def _parsed(self, line: bytes) -> dict[str, Any] | None:
        row = parsed(line)
        if row is None or type(row.get("step")) is not int or not 0 <= row["step"] < 2**62:
            self._bad_lines += bool(line.strip())
            return None
        return row

    def _take(self, rows: list[dict[str, Any]]) -> None:
        while rows:
            # One run of growing steps at a time; the next one begins where a resume went back.
            length = next((i for i in range(1, len(rows)) if rows[i]["step"] <= rows[i - 1]["step"]), len(rows))
            part, rows = rows[:length], rows[length:]
            self._rows = int(np.searchsorted(self._steps[: self._rows], part[0]["step"]))
            self._append(part)

    def _append(self, rows: list[dict[str, Any]]) -> None:
        start, end = self._rows, self._rows + len(rows)
        flat = [numbers_of(row) for row in rows]
        names = set(self._columns).union(*flat)
        for name in sorted(names - set(self._columns))[: _MOST_SERIES - len(self._columns)]:
            self._columns[name] = np.full(len(self._steps), np.nan, dtype=np.float32)
        if end > len(self._steps):
            capacity = max(end, 256, len(self._steps) + len(self._steps) // 2)
            self._steps = np.resize(self._steps, capacity)
            for name, column in self._columns.items():
                larger = np.full(capacity, np.nan, dtype=np.float32)
                larger[:start] = column[:start]
                self._columns[name] = larger
        self._steps[start:end] = [row["step"] for row in rows]
        for name, column in self._columns.items():
            column[start:end] = [row.get(name, np.nan) for row in flat]
        self._rows = end
        self._last_row = rows[-1]


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl by name; other values are left out."""
    flat = {name: value for name, value in row.items() if _is_number(value)}
    phases = row.get("phases")
    if isinstance(phases, dict):
        flat |= {f"phases/{name}": value for name, value in phases.items() if _is_number(value)}
    return flat


def _is_number(value: Any) -> bool:
    """Whether a column can hold it: one of float32, in range."""
    return type(value) in (int, float) and abs(value) < 3.4e38
