"""A prompt, and the ticket under which it is sampled as one group."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any


def prompt_id(source: str, text: str, before: tuple[tuple[str, str], ...] = ()) -> str:
    """Content hash of a prompt: the same prompt has the same id in every run. before: of its conversation."""
    whole = "".join(f"{role}\x1f{content}\x1e" for role, content in before) + text
    return hashlib.sha256(f"{source}\x1f{whole}".encode()).hexdigest()[:16]


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
    """Name of a registered verifier, dotted path `module:callable`, or `{"kind": name, options…}` as JSON."""
    material: dict[str, Any] = field(default_factory=dict)
    """What the verifier needs besides the answer (reasoning-gym: task, params and the entry)."""
    difficulty: str = ""
    """How hard its source says it is; "" where it does not say."""
    row: dict[str, Any] = field(default_factory=dict)
    """Every column of the line that it was read from, by name; empty where it was not."""
    question: str = ""
    """What its source asks, without the template and solved examples around it; "" where the text is all there is."""
    before: tuple[tuple[str, str], ...] = ()
    """What stands before the text in its conversation, as (role, content); the text is what the user says last."""
    origin: str = ""
    """Name of the recipe's source that it came from; its rows may name sources of their own."""

    @property
    def asked(self) -> str:
        """All that is asked, turn by turn, without what the system says: prompts that are alike in it are one question."""
        return "\n\n".join([*(content for role, content in self.before if role != "system"), self.text])


@dataclass(frozen=True, slots=True)
class Ticket:
    """One place in the feed: this prompt, to be sampled as one group."""

    group_id: str
    """`prompt_id:epoch:occurrence:attempt`; never used twice."""
    prompt: Prompt
    group_size: int
    """How many samples to draw."""
    sequence: int
    """Position in the feed, counted over all epochs; orders groups within a batch."""
    attempt: int = 0
    """How often this group was lost before; a lost group is never sampled again under the same id."""
    born: int = 0
    """Policy version that every engine held when the group was admitted."""

    def next_attempt(self) -> "Ticket":
        """The same place once more, after its group was lost."""
        stem, _, _ = self.group_id.rpartition(":")
        return replace(self, group_id=f"{stem}:{self.attempt + 1}", attempt=self.attempt + 1)
