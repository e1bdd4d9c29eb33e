"""Prompts and the feed that deals them out: a reproducible order, a cursor, an epoch."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moments_service.seeding import derive_seed


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
    difficulty: str = ""
    """How hard its source says it is; "" where it does not say."""


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


class PromptFeed:
    """Deals out a pool of prompts for ever: every epoch is a permutation of the pool, fixed by the seed.

    Its state is the number of tickets dealt, so a resumed feed goes on exactly where the saved one stood.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self._prompts = {prompt.prompt_id: prompt for prompt in prompts}
        if not prompts:
            raise ValueError("the prompt feed needs at least one prompt")
        if len(self._prompts) < len(prompts):
            raise ValueError(
                f"the pool holds {len(prompts)} prompts but {len(self._prompts)} distinct ids; drop duplicates first"
            )
        self._seed = seed
        self._sequence = 0
        self._order = self._permutation(0)

    @property
    def sequence(self) -> int:
        """Tickets dealt so far, which is the position of the next one."""
        return self._sequence

    @property
    def epoch(self) -> int:
        """Epoch of the next ticket."""
        return self._sequence // len(self._prompts)

    @property
    def cursor(self) -> int:
        """Place of the next ticket within its epoch."""
        return self._sequence % len(self._prompts)

    def next(self) -> Ticket:
        """The next ticket; never ends."""
        if self.cursor == 0:
            self._order = self._permutation(self.epoch)
        ticket = Ticket(prompt=self._order[self.cursor], sequence=self._sequence, epoch=self.epoch)
        self._sequence += 1
        return ticket

    def state(self, in_flight: Iterable[Ticket] = ()) -> dict[str, Any]:
        """What a checkpoint needs, as JSON.

        in_flight: tickets that were dealt but whose groups are in no batch up to the checkpoint.
        """
        return {
            "pool": self._pool_hash(),
            "seed": self._seed,
            "sequence": self._sequence,
            "in_flight": [
                {
                    "prompt_id": ticket.prompt.prompt_id,
                    "sequence": ticket.sequence,
                    "epoch": ticket.epoch,
                    "occurrence": ticket.occurrence,
                    "attempt": ticket.attempt,
                }
                for ticket in in_flight
            ],
        }

    def load_state(self, state: Mapping[str, Any]) -> tuple[Ticket, ...]:
        """Go on from a saved state. Returns the tickets that were in flight, to be dispatched again as they were.

        They keep their attempt: nothing of those groups is in the state past the checkpoint.
        """
        if state["pool"] != self._pool_hash():
            raise ValueError(
                "the checkpoint's prompt feed was dealing other prompts (pool "
                f"{state['pool']}, now {self._pool_hash()}: {len(self._prompts)} prompts); "
                "resume with the same `prompts`, or start a new run"
            )
        if state["seed"] != self._seed:
            raise ValueError(
                f"the checkpoint's prompt feed has seed {state['seed']}, this run has {self._seed}; "
                "resume with the same seed, or start a new run"
            )
        self._sequence = state["sequence"]
        self._order = self._permutation(self.epoch)
        return tuple(
            Ticket(
                prompt=self._prompts[saved["prompt_id"]],
                sequence=saved["sequence"],
                epoch=saved["epoch"],
                occurrence=saved["occurrence"],
                attempt=saved["attempt"],
            )
            for saved in state["in_flight"]
        )

    def _permutation(self, epoch: int) -> list[Prompt]:
        # Sorted by hash, not shuffled: the order then depends on no library's generator and not on the pool's order.
        epoch_seed = derive_seed(self._seed, "feed", epoch)
        return sorted(self._prompts.values(), key=lambda prompt: derive_seed(epoch_seed, prompt.prompt_id))

    def _pool_hash(self) -> str:
        """Hash of what is asked and how it is judged; the order of the pool does not matter."""
        lines = sorted(f"{p.prompt_id}\x1f{p.answer}\x1f{p.verifier}" for p in self._prompts.values())
        return hashlib.sha256("\x1e".join(lines).encode()).hexdigest()[:16]
