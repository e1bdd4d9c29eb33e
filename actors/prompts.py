"""Prompts and the feed that deals them out: a reproducible order, a cursor, an epoch."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any


def prompt_id(source: str, text: str) -> str:
    """Content hash of a prompt: the same prompt has the same id in every run."""
    return hashlib.sha256(f"{source}\x1f{text}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One task for the policy, with what its verifier needs."""

    prompt_id: str
    source: str
    """Task family or data set, as tables name it."""
    text: str
    """What the policy reads, before tokenisation."""
    answer: str | None
    """Gold answer, where the source has one."""
    verifier: str
    """Name of a registered verifier or dotted path `module:callable`."""
    material: dict[str, Any] = field(default_factory=dict)
    """What the verifier needs besides the answer (reasoning-gym: task, params and the entry)."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """One place in the feed: this prompt, to be sampled as one group."""

    prompt: Prompt
    sequence: int
    """Position in the feed, counted over all epochs; orders groups within a batch."""
    epoch: int
    occurrence: int = 0
    """How often the prompt was dealt before in this epoch."""
    attempt: int = 0
    """How often this group was lost before; a lost group is never sampled again under the same id."""

    @property
    def group_id(self) -> str:
        return f"{self.prompt.prompt_id}:{self.epoch}:{self.occurrence}:{self.attempt}"

    def next_attempt(self) -> "Ticket":
        return replace(self, attempt=self.attempt + 1)
