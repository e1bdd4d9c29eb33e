"""Numbers as people read them."""

from typing import Any


def shown(value: Any, form: str = ".2f") -> str:
    """A number, or a dash: files have null where there is none, and files of others anything."""
    return format(value, form) if isinstance(value, int | float) else "–"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
