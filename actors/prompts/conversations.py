"""Columns of messages, as chat data has them, and the texts in them."""

import math
from typing import Any

from actors.prompts.renderer import Before


def conversation(field: str, messages: list[Any]) -> tuple[Before, str]:
    """What stands before the user's last message, and that message. Raises ValueError for what is no conversation.

    messages: `role` and `content` each; a content may be a list of parts of type `text`.
    """
    found = [_message(field, number, message) for number, message in enumerate(messages, 1)]
    last = max((at for at, (role, _) in enumerate(found) if role == "user"), default=None)
    if last is None:
        raise ValueError(f"field `{field}` has no message of the role `user`")
    return tuple(found[:last]), found[last][1].strip()


def _message(field: str, number: int, message: Any) -> tuple[str, str]:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(role, str) or not isinstance(content, str) or not content.strip():
        raise ValueError(
            f"message {number} of field `{field}` must have a `role` and a `content` that are texts, found {message!r:.80}"
        )
    return whole_text(field, role), whole_text(field, content)


def whole_text(field: str, value: str | float) -> str:
    """A text, or a number as one. Raises ValueError for what no file can hold again."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"field `{field}` holds a number that is too large")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        raise ValueError(f"field `{field}` holds half a character, {half} (a lone surrogate); write it whole") from None
    return text
