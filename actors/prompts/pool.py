"""Every prompt of a run, each of them once."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from actors.prompts.options import Source
from actors.prompts.prompt import Prompt

log = logging.getLogger(__name__)


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


def fill(template: str, question: str) -> str:
    """The question in its place in the template."""
    # Not str.format: questions and templates may carry braces of their own (JSON, LaTeX).
    return template.replace("{question}", question)
