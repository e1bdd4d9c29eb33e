"""Parts of the texts of models and data sets, for the page, which shows them as text."""

from typing import Any

from deploy.report.visible import visible

FIRST_CHARS = 2000
"""Characters of a text that are sent at first; the page asks for more."""
MORE_CHARS = 20_000
"""Characters that are sent each time somebody asks for more."""


def excerpt(text: str, offset: int = 0, limit: int = FIRST_CHARS) -> dict[str, Any]:
    """A part of a text: {text, next, chars}. next: offset of what follows, None at the end."""
    end = offset + limit
    return {
        "text": visible(text[offset:end]),
        "next": end if end < len(text) else None,
        "chars": len(text),
    }
