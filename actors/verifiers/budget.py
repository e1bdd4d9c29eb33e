"""What may be spent on a service, counted in a file that all processes of a run share."""

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any


class BudgetError(RuntimeError):
    """What may be spent is spent, or nobody can say how much was."""


class Budget:
    """Calls and tokens, counted in one file under a lock, so that they hold over processes, actors, kills and resumes.

    Calls are counted before they are made, and never go beyond. Tokens are known after: those that are under way may go beyond.
    """

    def __init__(self, file: str, calls: int | None = None, tokens: int | None = None) -> None:
        """calls, tokens: how many there may be; None for any number. Raises BudgetError where the file cannot be written."""
        self._path, self._most = Path(file), {"calls": calls, "tokens": tokens}
        self._add({})

    def call(self) -> None:
        """Count a call that is made now. Raises BudgetError where there is none left."""
        self._add({"calls": 1}, refuse=True)

    def used(self, tokens: int) -> None:
        """Count what a call has used."""
        self._add({"tokens": tokens})

    def _add(self, more: dict[str, int], refuse: bool = False) -> None:
        try:
            with os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                spent = self._spent(file)
                for name, most in self._most.items() if refuse else ():
                    if most is not None and spent[name] >= most:
                        raise BudgetError(f"the budget of {most} {name} is spent ({self._path})")
                counted = json.dumps({name: count + more.get(name, 0) for name, count in spent.items()})
                # In one call, over what is never longer: a process that is killed leaves the old counts or the new ones.
                os.pwrite(file.fileno(), counted.encode(), 0)
        except OSError as error:
            raise BudgetError(f"the budget's file {self._path} cannot be kept: {error.strerror}") from error

    def _spent(self, file: IO[str]) -> dict[str, int]:
        try:
            found: dict[str, Any] = json.loads(file.read() or "{}")
            return {name: int(found.get(name, 0)) for name in self._most}
        except (ValueError, TypeError, AttributeError):
            raise BudgetError(f"{self._path} does not hold what was spent; remove it to begin at 0") from None
