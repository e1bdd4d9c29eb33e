"""Text of models and data sets, made safe to look at. It is hostile: the page shows it as text, and this makes it visible."""

from typing import Any

FIRST_CHARS = 2000
"""Characters of a text that are sent at first; the page asks for more."""
MORE_CHARS = 20_000
"""Characters that are sent each time somebody asks for more."""

_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
"""Control characters, the escape of ANSI codes among them, as the symbols that stand for them."""
_TURNERS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)
"""Characters that turn the direction of what follows them, and can make a text read like another."""
_VISIBLE = (
    _PICTURES
    | {code: f"⟨U+{code:04X}⟩" for code in (*range(0x80, 0xA0), *_TURNERS, 0x2028, 0x2029)}
    | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
)


def visible(text: str) -> str:
    """The text with every invisible character that does something shown instead."""
    return text.translate(_VISIBLE)


def excerpt(text: str, offset: int = 0, limit: int = FIRST_CHARS) -> dict[str, Any]:
    """A part of a text for the page: {text, next, chars}. next: offset of what follows, None at the end."""
    end = offset + limit
    return {
        "text": visible(text[offset:end]),
        "next": end if end < len(text) else None,
        "chars": len(text),
    }
