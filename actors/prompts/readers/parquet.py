"""Rows of a parquet file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.prompts.options import ParquetSource
from actors.prompts.pool import SourceError

ROWS_AT_ONCE = 4096


def rows(source: ParquetSource, path: Path) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """Every row, counted from 1."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SourceError(source, "reading parquet needs pyarrow; pip install 'bvblend[data]'") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        after = f" after row {number}" if number else ""
        raise SourceError(source, f"{path} is no parquet file{after}: {str(error).splitlines()[0]}") from None
