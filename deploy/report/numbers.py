"""Numbers as people read them."""

from collections.abc import Iterable
from typing import Any


def shown(value: Any, form: str = ".2f") -> str:
    """A number, or a dash: NaN and null are none, and files of others have anything there."""
    return format(value, form) if is_number(value) else "–"


def is_number(value: Any) -> bool:
    """Whether it can be computed with and written as a float."""
    return value == value if type(value) is float else isinstance(value, float | int) and abs(value) < 2**63


def mean_of_known(values: Iterable[Any]) -> float | None:
    """Mean of those that are numbers; None where none is."""
    known = [value for value in values if is_number(value)]
    return sum(known) / len(known) if known else None


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
