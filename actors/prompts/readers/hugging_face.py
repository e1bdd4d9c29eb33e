"""Rows of a Hugging Face dataset: a directory, or a name on the hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.prompts.options import DatasetSource
from actors.prompts.pool import SourceError
from moments_service.suggestions import nearest

ROWS_AT_ONCE = 1024
SAVED = ("dataset_dict.json", "state.json")
"""What `save_to_disk` leaves beside the data."""


def rows(source: DatasetSource, path: Path) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """Every row of the split, by its index in the dataset. Nothing is decoded: an image stays the bytes that it is."""
    try:
        import datasets
    except ImportError:
        raise SourceError(source, "reading it needs the library datasets; pip install 'bvblend[data]'") from None
    datasets.disable_progress_bars()
    split = _split(source, path, datasets)
    index = 0
    for batch in split.with_format("arrow").iter(ROWS_AT_ONCE):
        for row in batch.to_pylist():
            yield f"{source.path}, {source.split}[{index}]", row
            index += 1


def _split(source: DatasetSource, path: Path, datasets: Any) -> Any:
    here = path.is_dir()
    try:
        if here and any((path / name).is_file() for name in SAVED):
            return _one(source, datasets.load_from_disk(str(path)))
        name = str(path) if here else str(source.path)
        return datasets.load_dataset(name, source.subset, split=source.split)
    except SourceError:
        raise
    # A missing dataset, split or configuration, no network, damaged data files: one kind of error each.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        place = str(path) if here else f"no directory {path}, and from the hub"
        raise SourceError(source, f"`path` {str(source.path)!r} cannot be read ({place}): {reason}") from None


def _one(source: DatasetSource, saved: Any) -> Any:
    """The split of several that were saved together; one that was saved alone must be the one that is asked for, where it says which it is."""
    if not isinstance(saved, dict):
        if saved.split is not None and str(saved.split) != source.split:
            raise SourceError(source, f"it was saved as the split `{saved.split}`, and `split` is `{source.split}`")
        return saved
    if source.split not in saved:
        raise SourceError(source, f"it has no split `{source.split}`{nearest(source.split, saved)}")
    return saved[source.split]
