"""Text that comes from data, made safe to look at: completions, prompts, names, messages. It is hostile; this makes it visible."""

_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
"""Control characters, the escape of ANSI codes among them, as the symbols that stand for them."""
_TURNERS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)
"""Characters that turn the direction of what follows them, and can make a text read like another."""
_VISIBLE = (
    _PICTURES
    | {code: f"⟨U+{code:04X}⟩" for code in (*range(0x80, 0xA0), *_TURNERS, 0x2028, 0x2029)}
    | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
)
_ONE_LINE = _VISIBLE | {ord("\n"): "␊", ord("\t"): "␉"}


def visible(text: str) -> str:
    """The text with every invisible character that does something shown instead; line ends and tabs stay."""
    return text if text.isascii() and text.isprintable() else text.translate(_VISIBLE)


def one_line(name: str) -> str:
    """The same for what has to stay on its line, such as a name."""
    return name if name.isascii() and name.isprintable() else name.translate(_ONE_LINE)
