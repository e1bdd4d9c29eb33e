"""Readers: from a file or a dataset to rows. A new one is a file with a function `rows`, and its line here.

A reader yields, for each row in its order, where it stands as people find it, and the row by column or the ValueError that says
what is wrong with it. It raises SourceError where the whole cannot be read.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from actors.prompts.readers import csv_file, hugging_face, json_lines, parquet

Row = dict[str, Any]
Reader = Callable[[Any, Path], Iterator[tuple[str, Row | ValueError]]]

READERS: dict[str, Reader] = {
    "csv": csv_file.rows,
    "dataset": hugging_face.rows,
    "jsonl": json_lines.rows,
    "parquet": parquet.rows,
}
