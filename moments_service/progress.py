"""How long work says how far it is, without knowing who listens."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with how many are done, and of how many."""


def silent(done: int, of: int) -> None:
    """Nobody listens."""
