"""The verifier `exact`: the completion is the gold answer, up to form."""

import re
import unicodedata

from actors.prompts.prompt import Prompt
from actors.verifiers.answers import boxed
from actors.verifiers.gold import gold_answer

_AROUND = " \t\r\n\"'`“”‘’*_$"
_WRAPPED = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|mbox|textrm)\s?\{(.*)\}|\\[(\[](.*)\\[)\]]|[(\[{](\w+)[)\]}]", re.DOTALL
)


def exact(prompt: Prompt, completion: str) -> float:
    """1 if the completion, or its last \\boxed{}, is the gold answer up to case, white space and what is usually put around one:
    quotes, emphasis, a final full stop, \\text{}, and brackets around a single word such as (B)."""
    box = boxed(completion)
    return float(unwrapped(completion if box is None else box) == unwrapped(gold_answer(prompt)))


def refuse_empty_gold(gold: str) -> None:
    """Raise ValueError where `exact` would find every empty completion right."""
    if not unwrapped(gold):
        raise ValueError(f"the gold answer {gold!r} is empty for the verifier `exact`")


def unwrapped(text: str) -> str:
    """A text in lower case and single spaces, without what is usually put around an answer."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    for _ in range(8):  # more layers than anybody writes
        text = text.strip(_AROUND).removesuffix(".").strip(_AROUND)
        wrapped = _WRAPPED.fullmatch(text)
        if wrapped is None:
            break
        text = next(inside for inside in wrapped.groups() if inside is not None)
    return text
