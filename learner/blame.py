"""Which of several ranks holds up the others. Plain Python: the driver asks it, and has neither torch nor a process group."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a rank was when it was asked."""

    doing: str
    """Phase and microbatch, for people."""
    line: str
    """`file:line` of this project's code that it was in; "" where that is not known."""
    collectives: int
    """How many it has begun: one that waits for the others has begun one more than they have."""

    def __str__(self) -> str:
        return f"{self.doing}, {self.line}" if self.line else self.doing


def holding_up(answers: Mapping[int, Whereabouts | None]) -> tuple[int, ...]:
    """Ranks that the others wait for, ascending: those that give no answer, else those that have begun the fewest collectives.

    answers: of every rank that is late, by its number; None where it did not answer. All of them where none is behind.
    """
    silent = tuple(sorted(rank for rank, answer in answers.items() if answer is None))
    if silent:
        return silent
    begun = {rank: answer.collectives for rank, answer in answers.items() if answer is not None}
    fewest = min(begun.values(), default=0)
    return tuple(sorted(rank for rank, collectives in begun.items() if collectives == fewest))


ECHOES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Socket closed",
    "remote process exited",
    "Connection refused",
)
"""What gloo and NCCL say on a rank where another one is gone or does not come."""


def is_echo(reason: str) -> bool:
    """Whether an error is what other ranks get when one is gone: it names no cause."""
    return any(echo in reason for echo in ECHOES)
