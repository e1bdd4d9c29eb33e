"""The verifier `math`: the completion's answer is mathematically the gold answer, in LaTeX or plain text; math-verify and sympy say so.

Their own timeouts are off, since they need SIGALRM in the main thread: a comparison that explodes is ended with its process, and is an
error. Nothing reaches `parse_expr`, which evaluates: all is read as LaTeX, by a grammar.
"""

import logging
import re
from functools import lru_cache
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from actors.prompts.prompt import Prompt
from actors.verifiers.answers import LONGEST_ANSWER, boxed, marked, stated
from actors.verifiers.exact import unwrapped
from actors.verifiers.gold import gold_answer
from actors.verifiers.numbers import read_number
from actors.verifiers.numeric import last_expression

logging.getLogger("math_verify").setLevel(logging.ERROR)  # else it warns, once a process, that its timeouts are off

_AS_BOX = (LatexExtractionConfig(boxed_match_priority=0),)
_TAIL = 2000
"""Characters at the end of a completion in which a last formula is looked for."""
_DEEPEST = 30
"""Brackets inside of brackets that an answer may have."""
_FORMULA = re.compile(
    r"\$\$?([^$]{1,500})\$\$?|\\\(([^\\]{0,500}(?:\\(?!\))[^\\]{0,500}){0,60})\\\)|\\\[([^\\]{0,500}(?:\\(?!\])[^\\]{0,500}){0,60})\\\]"
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_LONGEST_ALONE = 80
_SENTENCE_END = re.compile(r"[.!?](?:\s|\*|$)|;\s")
_ASSIGNED = re.compile(r"[^=]{0,60}?(?:=|\\in(?![A-Za-z]))\s*(?=\\left|[(\[])")
_SIZES = re.compile(r"\\(?:left|right|big[lr]?|Big[lr]?)(?![A-Za-z])|\\[,;:! ]")
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s?\{[A-Za-z][^{}\\$]*\}|[A-Za-z]{4,}(?:[ -][A-Za-z]+)*")
_IN_BASE = re.compile(r"\s*([0-9A-Fa-f]{1,100})_\{?\s*([0-9]{1,2})\s*\}?\s*")
_UNFINISHED = re.compile(r"\\(?:int|i?iint|oint|sum|prod|lim)(?![A-Za-z])")
_EXPLODES = re.compile(
    r"\^[^^]{0,40}\^[^^]{0,40}\^|[0-9]{4,}\s?[})]?!|!\s?!|\^\s?\{?\s?-?[0-9]{5,}|[)}\]]\s?\^\s?\{?\s?-?[0-9]{3,}"
)
_RATIO = re.compile(r"[0-9]\s*:\s*[0-9]")


def math(prompt: Prompt, completion: str) -> float:
    """1 if the completion's answer is equivalent to the gold answer, 0 if not or if it cannot be read."""
    gold = gold_answer(prompt)
    refuse_gold_that_cannot_be_read(gold)
    answer = find_answer(completion)
    return float(answer is not None and equivalent(gold, answer))


def refuse_gold_that_cannot_be_read(gold: str) -> None:
    """Raise ValueError where no completion could be told to be right."""
    if not _is_readable(gold):
        raise ValueError(
            f"the gold answer {gold!r:.80} cannot be read by the verifier `math`; mend it, or name the verifier `exact` for texts"
        )


def find_answer(text: str) -> str | None:
    """What a completion gives as its answer: in its last \\boxed{}, behind a `####` with a number, behind the last "the answer is", or
    its last formula or number; None where there is none of these."""
    if (box := boxed(text)) is not None:
        return box
    for rest in reversed(marked(text)):
        if read_number(rest) is not None:
            return rest
    if _is_formula_alone(text.strip()):
        return text
    said = stated(text)
    if said is not None and (answer := _said(said)):
        return answer
    formula = None
    for formula in _FORMULA.finditer(text, max(0, len(text) - _TAIL)):  # noqa: B007
        pass
    last = last_expression(text)
    if formula is None or (last is not None and last[1] > formula.end()):
        return None if last is None else last[0]
    return next(filter(None, formula.groups()), None)


def equivalent(gold: str, answer: str) -> bool:
    """Whether an answer is mathematically the gold answer. Both in LaTeX or plain text."""
    if len(answer) > LONGEST_ANSWER or _depth(answer) > _DEEPEST:
        return False
    if unwrapped(gold) == unwrapped(answer):
        return True
    # What is still to be worked out is no answer, unless the gold answer is of that kind; towers of powers only cost a process.
    if _EXPLODES.search(answer) or (_UNFINISHED.search(answer) and not _UNFINISHED.search(gold)):
        return False
    if _WORDS.fullmatch(gold.strip()):
        return False
    if (by_base := _same_in_base(gold, answer)) is not None:
        return by_base
    ours, theirs = _tuple(gold), _tuple(answer)
    if ours is not None or theirs is not None:
        return ours is not None and theirs is not None and _same_tuples(ours, theirs)
    return _same_expressions(gold, answer)


def _same_expressions(gold: str, answer: str) -> bool:
    if bool(_RATIO.search(gold)) != bool(_RATIO.search(answer)):
        return False
    expected, found = read_number(gold), read_number(answer)
    if expected is not None and found is not None and (expected == found or "%" not in gold + answer):
        return expected == found
    parsed, against = _parsed(_canonical(gold)), _parse(_canonical(answer))
    return bool(parsed and against and verify(parsed, against, timeout_seconds=None))


def _is_readable(gold: str) -> bool:
    if not gold.strip() or len(gold) > LONGEST_ANSWER or _depth(gold) > _DEEPEST:
        return False
    if _WORDS.fullmatch(gold.strip()) or _IN_BASE.fullmatch(gold) or read_number(gold) is not None:
        return True
    if (elements := _tuple(gold)) is not None:
        return all(_is_readable(element) for element in elements[1])
    return bool(_parsed(_canonical(gold)))


def _is_formula_alone(text: str) -> bool:
    """Whether a completion is a formula and nothing else: short, in one line, without words."""
    return 0 < len(text) <= _LONGEST_ALONE and not re.search(r"[A-Za-z]{3}|\n", _COMMAND.sub("", text))


def _said(rest: str) -> str:
    """The answer that a line behind "the answer is" begins with: its formula, or what comes before the sentence ends."""
    rest = rest.strip().strip("*`_ ")
    formula = _FORMULA.match(rest)
    if formula is not None:
        return next(filter(None, formula.groups()), "")
    return _SENTENCE_END.split(rest + " ", maxsplit=1)[0].strip().rstrip(",.")


def _canonical(text: str) -> str:
    """A number as math-verify reads it without doubt, anything else as it is."""
    number = None if "%" in text else read_number(text)
    if number is None:
        return re.sub("[−–－]", "-", text).replace("\\varnothing", "\\emptyset").replace("\\{\\}", "\\emptyset")
    sign = "-" if number < 0 else ""
    whole = f"{sign}{abs(number.numerator)}"
    return whole if number.denominator == 1 else f"{sign}\\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"


def _parse(text: str) -> list[Any]:
    return parse(f"\\boxed{{{text}}}", _AS_BOX, fallback_mode="no_fallback", parsing_timeout=None)


@lru_cache(maxsize=4096)
def _parsed(gold: str) -> list[Any]:
    return _parse(gold)


_Tuple = tuple[str, tuple[str, ...]]


def _tuple(text: str) -> _Tuple | None:
    """The outer brackets of a tuple or an interval, and its elements; None for what is neither. math-verify takes (2, 1) for an
    empty interval, so that it would be equal to (3, 1)."""
    text = _SIZES.sub("", text).strip().strip("$").strip()
    if assigned := _ASSIGNED.match(text):
        text = text[assigned.end() :]
    if text[:1] not in {"(", "["} or text[-1:] not in {")", "]"}:
        return None
    elements, depth, start = [], 0, 1
    for place, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0 and place < len(text) - 1:
                return None
        elif character == "," and depth == 1:
            elements.append(text[start:place].strip())
            start = place + 1
    elements.append(text[start:-1].strip())
    return (text[0] + text[-1], tuple(elements)) if len(elements) > 1 and depth == 0 else None


def _same_tuples(gold: _Tuple, answer: _Tuple) -> bool:
    (brackets, expected), (others, found) = gold, answer
    return brackets == others and len(expected) == len(found) and all(map(equivalent, expected, found))


def _same_in_base(gold: str, answer: str) -> bool | None:
    """Of numbers in a base, where the gold answer is one: of equal digits, in the same base unless the answer names none."""
    ours = _IN_BASE.fullmatch(gold)
    if ours is None:
        return None
    theirs = _IN_BASE.fullmatch(_SIZES.sub("", answer).replace("\\text", "").strip("$ "))
    digits, base = (theirs[1], theirs[2]) if theirs else (answer.strip("$ "), ours[2])
    return digits.lower().lstrip("0") == ours[1].lower().lstrip("0") and int(base) == int(ours[2])


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest
