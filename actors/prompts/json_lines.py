"""Prompts from files of JSON lines. Whatever is wrong with one is said with its file and line."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from actors.config import JsonlSource
from actors.prompts.pool import PromptPool, SourceError, distinct, fill
from actors.prompts.prompt import Prompt, prompt_id
from actors.verifiers.gold_checks import refusals
from actors.verifiers.options import spec
from moments_service.suggestions import nearest


def load_file(source: JsonlSource, base: Path, need_difficulty: bool) -> PromptPool:
    """Prompts of one file in its order. Held out are those with the smallest ids, so the file's order does not matter."""
    path = base / source.path
    _refuse_unspeakable(source, path)
    if not path.is_file():
        raise SourceError(
            source, f"`path` {str(source.path)!r} is no file (looked at {path}); it counts from the recipe"
        )
    try:
        prompts = distinct(_checked(source, list(_prompts(source, path, need_difficulty))))
    except OSError as error:
        raise SourceError(source, f"{path} cannot be read: {error.strerror}") from None
    if not prompts:
        raise SourceError(source, f"{path} holds no prompts")
    held_out = set(sorted(prompt.prompt_id for prompt in prompts)[: source.held_out])
    train = [prompt for prompt in prompts if prompt.prompt_id not in held_out]
    return PromptPool(
        train=tuple(train[: source.limit]),
        held_out=tuple(prompt for prompt in prompts if prompt.prompt_id in held_out),
    )


def _refuse_unspeakable(source: JsonlSource, path: Path) -> None:
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise SourceError(
            source,
            f"{path} can be no file's name in this locale, whose encoding is {error.encoding}; "
            "set LC_ALL=C.UTF-8 or PYTHONUTF8=1",
        ) from None


def _prompts(source: JsonlSource, path: Path, need_difficulty: bool) -> Iterator[tuple[str, Prompt]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                yield where, _prompt(source, _row(line), need_difficulty)
            except ValueError as error:
                raise SourceError(source, f"{where}: {error}") from None


def _checked(source: JsonlSource, found: list[tuple[str, Prompt]]) -> list[tuple[str, Prompt]]:
    """The same. Raises SourceError for the first gold answer that the source's verifier cannot compare anything with."""
    refused = refusals(spec(source.verifier or "numeric"), (prompt.answer or "" for _, prompt in found))
    for where, prompt in found if refused else ():
        if (why := refused.get(prompt.answer or "")) is not None:
            raise SourceError(source, f"{where}: {why}")
    return found


def _row(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} is {line[error.start]:#04x}); convert the file") from None
    try:
        row = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        again = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {again!r} stands twice in one object; which of them counts?")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"not JSON: {name} is no number there")


def _prompt(source: JsonlSource, row: dict[str, Any], need_difficulty: bool) -> Prompt:
    question = _field(source, row, "question_field").strip()
    answer = _field(source, row, "answer_field").rpartition("####")[2].strip()
    name = _field(source, row, "source_field") if source.source_field else source.name
    verifier = spec(source.verifier or "numeric")
    text = fill(source.template, question)
    return Prompt(
        prompt_id=prompt_id(name, text),
        source=name,
        text=text,
        question=question,
        answer=answer,
        verifier=verifier,
        difficulty=_difficulty(row, need_difficulty),
        row=row,
    )


def _difficulty(row: dict[str, Any], need_difficulty: bool) -> str:
    """What the line says in `difficulty`, or else in `level`; "" where it says nothing of use, and nobody needs it."""
    value = row.get("difficulty")
    if value is None:
        value = row.get("level")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        if need_difficulty:
            raise ValueError(f"the difficulty must be a text or a number, found {value!r:.80}")
        return ""
    return _whole_text("difficulty", value).strip()


def _field(source: JsonlSource, row: dict[str, Any], key: str) -> str:
    field = getattr(source, key)
    if field not in row:
        remedy = nearest(field, row) if row else "; the line is empty"
        raise ValueError(f"no field `{field}` (from `{key}`){remedy}")
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ValueError(f"field `{field}` must be a text or a number, found {value!r:.80}")
    return _whole_text(field, value)


def _whole_text(field: str, value: str | float) -> str:
    """A text, or a number as one. Raises ValueError for what no file can hold again."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"field `{field}` holds a number that is too large")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        raise ValueError(f"field `{field}` holds half a character, {half} (a lone surrogate); write it whole") from None
    return text
