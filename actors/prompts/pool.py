"""Every prompt of a run, each of them once."""

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from actors.prompts.options import Source
from actors.prompts.prompt import Prompt

log = logging.getLogger(__name__)

PLACES = re.compile(r"\{question\}|\{row\.([^{}]+)\}")
"""What a template may hold for others to fill in."""


class SourceError(ValueError):
    """A source cannot be read as configured; the message names the source and the remedy."""

    def __init__(self, source: Source, message: str) -> None:
        super().__init__(f"prompts.sources: source `{source.name}`: {message}")


@dataclass(frozen=True, slots=True)
class PromptPool:
    """Every prompt of a run. No prompt text stands on both sides."""

    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]


def distinct(prompts: Iterable[tuple[str, Prompt]]) -> tuple[Prompt, ...]:
    """Each prompt, by its id, at the first place where it stands, with the gold answer that it has there.

    prompts: with where each stands, as people find it. Warns of those that come again with another gold answer.
    """
    first: dict[str, tuple[str, Prompt]] = {}
    conflicts = []
    for where, prompt in prompts:
        known_at, known = first.setdefault(prompt.prompt_id, (where, prompt))
        if known.answer != prompt.answer:
            conflicts.append(f"{where}: {prompt.answer!r}, but {known.answer!r} in {known_at}")
    if conflicts:
        log.warning(
            "%d prompts come again with another gold answer, and the first one counts; %s%s",
            len(conflicts),
            conflicts[0],
            "; …" if len(conflicts) > 1 else "",
        )
    return tuple(prompt for _, prompt in first.values())


def fill(template: str, question: str, column: Callable[[str], str] | None = None) -> str:
    """The question in its place in the template, and columns of its row in theirs, `{row.NAME}`. column: gives one as text."""
    # Not str.format: questions and templates may carry braces of their own (JSON, LaTeX).
    if column is None or "{row." not in template:
        return template.replace("{question}", question)
    return PLACES.sub(lambda place: question if place[1] is None else column(place[1]), template)
