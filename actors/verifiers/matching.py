"""Verifiers that compare a completion with the prompt's gold answer: as text, or as a number."""

import re
import unicodedata
from fractions import Fraction

from actors.prompts.prompt import Prompt

_END = r"(?!\.?\d|[eE][+-]?\d)"
# Lengths are bounded: an exponent or a digit string of the policy's choosing must not become a huge integer.
_UNSIGNED = (
    rf"(?:(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d{{1,400}})(?:\.\d{{1,400}})?(?:[eE][+-]?\d{{1,3}})?|\.\d{{1,400}}){_END}"
)
_NUMBER = re.compile(
    # A sign counts unless it stands between two operands; digits inside a word or a version number do not count.
    rf"(?P<sign>(?<![\w)])[-+])?[$€£]?(?<!\w)(?<!\d\.)(?P<top>{_UNSIGNED})(?:\s?/\s?(?P<bottom>\d{{1,400}}{_END}))?"
)
_FRACTION = re.compile(r"(\w?)\\[dt]?frac\s*\{\s*(-?\d{1,400})\s*\}\s*\{\s*(\d{1,400})\s*\}")


def exact(prompt: Prompt, completion: str) -> float:
    """1 if the completion is the gold answer up to case, white space, quotes and a final full stop."""
    return float(_normalise(completion) == _normalise(_gold(prompt)))


def numeric(prompt: Prompt, completion: str) -> float:
    """1 if the completion's answer is the gold answer's number, compared exactly (so 0.5 is 1/2)."""
    gold = find_number(_gold(prompt))
    if gold is None:
        raise ValueError(f"gold answer {prompt.answer!r} of prompt {prompt.prompt_id} holds no number")
    return float(find_number(completion) == gold)


def refuse_empty_gold(gold: str) -> None:
    """Raise ValueError where `exact` would find every empty completion right."""
    if not _normalise(gold):
        raise ValueError(f"the gold answer {gold!r} is empty for the verifier `exact`")


def refuse_gold_without_number(gold: str) -> None:
    """Raise ValueError where `numeric` finds no number to compare with."""
    if find_number(gold) is None:
        raise ValueError(
            f"the gold answer {gold!r:.80} holds no number for the verifier `numeric`; name another verifier"
        )


def find_number(text: str) -> Fraction | None:
    """The number that a text gives as its answer; None where it gives none.

    In the last \\boxed{} where there is one, else first after the last `####`, else the last number of all. Understands
    signs, thousands separators, decimals, exponents, a/b and \\frac{a}{b}. Nothing is evaluated.
    """
    boxed = _last_box(text)
    if boxed is not None:
        return _pick(boxed, last=True)
    _, marker, tail = text.rpartition("####")
    return _pick(tail, last=not marker)


def _gold(prompt: Prompt) -> str:
    if prompt.answer is None:
        raise ValueError(f"prompt {prompt.prompt_id} of source `{prompt.source}` has no gold answer to compare with")
    return prompt.answer


def _normalise(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip("\"'`“”‘’").removesuffix(".").strip("\"'`“”‘’").strip()


def _last_box(text: str) -> str | None:
    """What stands inside the last \\boxed{…}; None without one that closes."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return None


def _pick(text: str, last: bool) -> Fraction | None:
    text = text.replace("−", "-").replace("{,}", ",").replace("\\!", "").replace("\\,", "").replace("\\$", "$")
    text = _FRACTION.sub(lambda m: f"{m[1]} {m[2]}/{m[3]}" if m[1] else f"{m[2]}/{m[3]}", text)
    found = list(_NUMBER.finditer(text))
    return _value(found[-1 if last else 0]) if found else None


def _value(match: re.Match[str]) -> Fraction | None:
    value = Fraction(match["top"].replace(",", ""))
    if match["bottom"]:
        if int(match["bottom"]) == 0:
            return None
        value /= int(match["bottom"])
    return -value if match["sign"] == "-" else value
