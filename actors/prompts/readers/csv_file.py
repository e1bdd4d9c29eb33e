"""Rows of a CSV file, whose first row names the columns. Every cell is a text."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.prompts.options import CsvSource
from actors.prompts.pool import SourceError

LARGEST_CELL = 2**31 - 1
"""Characters; the module's own limit of 131,072 is less than some columns of unit tests have."""

ENDED_IN_QUOTES = "unexpected end of data"
"""What Python's reader says of a cell whose quotes are still open at the end of the file."""


def rows(source: CsvSource, path: Path) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """Every row that is not blank, named by the line where it begins. Cells in quotes may hold line breaks."""
    csv.field_size_limit(LARGEST_CELL)
    # Bytes that are no UTF-8 become halves of characters, by which their row is found.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=source.delimiter, strict=True)
        columns = _columns(source, path, reader)
        while True:
            where = f"{path}, line {reader.line_num + 1}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if str(error) == ENDED_IN_QUOTES:  # everything from there on is one cell: no row that could be left out
                    raise SourceError(source, f"{where}: a quote opens and closes nowhere; close it") from None
                yield where, ValueError(f"not CSV: {error}")
                continue
            if cells:
                yield where, _row(columns, cells)


def _columns(source: CsvSource, path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        columns = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise SourceError(source, f"{path}, line 1: not CSV: {error}") from None
    for name in columns:
        if columns.count(name) > 1:
            raise SourceError(source, f"{path}, line 1: two columns are called {name!r}; rename one")
    return columns


def _row(columns: list[str], cells: list[str]) -> dict[str, Any] | ValueError:
    if len(cells) != len(columns):
        return ValueError(
            f"{len(cells)} cells, but the first row names {len(columns)} columns; put cells with the delimiter in quotes"
        )
    row = dict(zip(columns, cells, strict=True))
    for name, cell in row.items():
        if any("\udc80" <= character <= "\udcff" for character in cell):
            return ValueError(f"column `{name}` is not UTF-8; convert the file")
    return dict(row)
