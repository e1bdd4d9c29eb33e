"""From a row of a file or dataset to a prompt."""

from typing import Any

from actors.prompts.conversations import conversation, whole_text
from actors.prompts.options import FileSource
from actors.prompts.pool import fill
from actors.prompts.prompt import Prompt, prompt_id
from actors.prompts.renderer import Before
from actors.verifiers.options import spec
from moments_service.suggestions import nearest


def prompt_of(source: FileSource, row: dict[str, Any], need_difficulty: bool) -> Prompt:
    """Raises ValueError for a row that lacks what the source names, or has it in a form that is no text."""
    question, before = _asked(source, row)
    answer = (
        _field(row, source.answer_field, "answer_field").rpartition("####")[2].strip() if source.answer_field else None
    )
    name = _field(row, source.source_field, "source_field") if source.source_field else source.name
    text = fill(source.template, question, lambda column: _field(row, column, "template"))
    return Prompt(
        prompt_id=prompt_id(name, text, before),
        source=name,
        text=text,
        question=question,
        before=before,
        answer=answer,
        verifier=spec(source.verifier or "numeric"),
        difficulty=_difficulty(row, need_difficulty),
        row=row,
        origin=source.name,
    )


def _asked(source: FileSource, row: dict[str, Any]) -> tuple[str, Before]:
    """What the user asks last, and what stands before it. What follows, an answer mostly, is no part of a prompt."""
    field = source.question_field
    value = _value(row, field, "question_field")
    if isinstance(value, list):
        before, question = conversation(field, value)
    else:
        before, question = (), _field(row, field, "question_field").strip()
    if source.system is not None and not any(role == "system" for role, _ in before):
        before = (("system", source.system), *before)
    return question, before


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
    return whole_text("difficulty", value).strip()


def _field(row: dict[str, Any], field: str, key: str) -> str:
    """The column of that name as a text. key: of the source, that names it."""
    value = _value(row, field, key)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ValueError(f"field `{field}` must be a text or a number, found {value!r:.80}")
    return whole_text(field, value)


def _value(row: dict[str, Any], field: str, key: str) -> Any:
    if field in row:
        return row[field]
    outer, dot, inner = field.partition(".")
    if dot and isinstance(below := row.get(outer), dict):
        return _value(below, inner, key)
    remedy = nearest(field, row) if row else "; the line is empty"
    raise ValueError(f"no field `{field}` (from `{key}`){remedy}")
