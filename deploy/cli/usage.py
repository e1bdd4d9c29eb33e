"""What is said of words that a command does not take."""

from collections.abc import Sequence
from typing import Any


def wrong_usage(message: str, command: Any, words: Sequence[str]) -> str:
    """One sentence: which command, what is wrong with its words, and where it says what it takes.

    message: typer's; "" where nothing but a command was named whose help it has printed, and so is the answer.
    """
    if not message:
        return ""
    path = ["bvblend"]
    for word in words:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        path.append(word)
    name = " ".join(path)
    return f"{name}: {' '.join(message.split()).rstrip('.')}; `{name} --help` says what it takes"
