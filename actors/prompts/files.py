"""Prompts from the rows of a file or dataset. Whatever is wrong with a row is said with its place."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from actors.prompts.options import DatasetSource, FileSource
from actors.prompts.pool import PromptPool, SourceError, distinct
from actors.prompts.prompt import Prompt
from actors.prompts.readers import READERS
from actors.prompts.rows import prompt_of
from actors.verifiers.gold_checks import refusals
from actors.verifiers.options import spec

log = logging.getLogger(__name__)


def load_file(source: FileSource, base: Path, need_difficulty: bool) -> PromptPool:
    """Prompts of one file in its order. Held out are those with the smallest ids, so the file's order does not matter."""
    path = base / source.path
    _refuse_unspeakable(source, path)
    if not path.is_file() and not isinstance(source, DatasetSource):
        raise SourceError(
            source, f"`path` {str(source.path)!r} is no file (looked at {path}); it counts from the recipe"
        )
    bad = BadRows(source)
    try:
        prompts = distinct(_checked(source, list(_prompts(source, path, need_difficulty, bad)), bad))
    except OSError as error:
        raise SourceError(source, f"{path} cannot be read: {error.strerror}") from None
    bad.report()
    if not prompts:
        raise SourceError(source, f"{path} holds no prompts")
    held_out = set(sorted(prompt.prompt_id for prompt in prompts)[: source.held_out])
    train = [prompt for prompt in prompts if prompt.prompt_id not in held_out]
    return PromptPool(
        train=tuple(train[: source.limit]),
        held_out=tuple(prompt for prompt in prompts if prompt.prompt_id in held_out),
    )


class BadRows:
    """Rows that cannot be used: the first one is the end, or all are left out and counted, as the source says."""

    def __init__(self, source: FileSource) -> None:
        self._source, self._count, self._first = source, 0, ""

    def add(self, where: str, why: str) -> None:
        """Raises SourceError where the source refuses them."""
        if self._source.bad_rows == "refuse":
            raise SourceError(self._source, f"{where}: {why}") from None
        self._first = self._first or f"{where}: {why}"
        self._count += 1

    def report(self) -> None:
        """Warn of those that were left out."""
        if self._count:
            more = "; …" if self._count > 1 else ""
            log.warning("source `%s`: %d rows are left out; %s%s", self._source.name, self._count, self._first, more)


def _refuse_unspeakable(source: FileSource, path: Path) -> None:
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise SourceError(
            source,
            f"{path} can be no file's name in this locale, whose encoding is {error.encoding}; "
            "set LC_ALL=C.UTF-8 or PYTHONUTF8=1",
        ) from None


def _prompts(source: FileSource, path: Path, need_difficulty: bool, bad: BadRows) -> Iterator[tuple[str, Prompt]]:
    for where, row in READERS[source.kind](source, path):
        try:
            if isinstance(row, ValueError):
                raise row
            yield where, prompt_of(source, row, need_difficulty)
        except ValueError as error:
            bad.add(where, str(error))


def _checked(source: FileSource, found: list[tuple[str, Prompt]], bad: BadRows) -> list[tuple[str, Prompt]]:
    """Without those whose gold answer the source's verifier cannot compare anything with."""
    refused = refusals(spec(source.verifier or "numeric"), (prompt.answer or "" for _, prompt in found))
    if not refused:
        return found
    kept = []
    for where, prompt in found:
        if (why := refused.get(prompt.answer or "")) is None:
            kept.append((where, prompt))
        else:
            bad.add(where, why)
    return kept
