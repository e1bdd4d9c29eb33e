"""The verifier `numeric`: the completion's answer is the gold answer's number, compared exactly."""

import re
from fractions import Fraction

from actors.prompts.prompt import Prompt
from actors.verifiers.answers import boxed, marked, stated
from actors.verifiers.gold import gold_answer
from actors.verifiers.numbers import read_number

_BEFORE = 200
_AFTER = 100
"""Characters around a digit in which the expression that it belongs to is looked for."""
_DIGIT = re.compile(r"(?P<inside>[A-Za-z]{1,40}-?[0-9][0-9A-Za-z]*)|[0-9¼-¾⅐-⅞]")
_TOKEN = re.compile(
    r"\\(?:text|mathrm|textbf|mathbf|textrm|mbox)\s?\{[^{}\n]{0,60}\}|\\[A-Za-z]+|\\.|[0-9]+|[A-Za-z]+|\n|[ \t\xa0\u2009\u202f]+|.",
    re.DOTALL,
)
_MORE = re.compile(
    r"\s{0,2}(?:(?:thousand|million|billion|trillion|hundred|dozen)|and\s{1,2}an?\s{1,2}(?:half|third|quarter))\b",
    re.IGNORECASE,
)
"""Words that make another number of the one before them."""
_TIGHT = frozenset("^_{}()/+*=|\\")
_MATH = frozenset("+-−–‒－*/^=<>()[]{}.,:'’%°√π×·⋅±∓≈≠≤≥|_∞!$€£¥~") | set("¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺⁄")
_FILLER = re.compile(
    r"(?:\s|[$€£¥*_`(\[{:=≈~]|\\[(\[{$,;! ]|\\(?:left|approx|boxed|text|mathbf|displaystyle)(?![A-Za-z])|(?<![A-Za-z])[A-Za-z](?=\s{0,2}[=≈])"
    r"|\\[dtc]?frac\s{0,2}\{?|[-+−–－.]|\b(?:about|approximately|around|roughly|exactly|only|just|US|equal to|simply|now|therefore|thus|then|indeed|a total of|the number|number)\b){0,40}"
)


def numeric(prompt: Prompt, completion: str) -> float:
    """1 if the completion's answer is the gold answer's number, compared exactly (so 0.5 is 1/2)."""
    text = gold_answer(prompt)
    gold = read_number(text)
    if gold is None:
        refuse_gold_that_is_no_number(text)
    return float(find_number(completion) == gold)


def refuse_gold_that_is_no_number(gold: str) -> None:
    """Raise ValueError where the gold answer is not one number as a whole."""
    if read_number(gold) is None:
        raise ValueError(
            f"the gold answer {gold!r:.80} is not one number as a whole, which the verifier `numeric` compares with; "
            "name the verifier `math` for expressions, `exact` for texts"
        )


def find_number(text: str) -> Fraction | None:
    """The number that a completion gives as its answer; None where it gives none.

    In the last \\boxed{} where there is one, else behind the last `####` that a number follows, else behind the last "the answer
    is", else the last number of all. Where that place holds an expression that is not one number, there is none.
    """
    box = boxed(text)
    if box is not None:
        return read_number(box)
    for rest in reversed(marked(text)):
        if (number := read_number(re.sub(r"\s\([^()]*\)[.]?$", "", rest))) is not None:
            return number
    said = stated(text)
    first = None if said is None else _first_digit(said)
    if said is not None and first is not None:
        return read_number(_expression(said, first, choices="or|and"))
    last = last_expression(text)
    return None if last is None else read_number(last[0])


def last_expression(text: str) -> tuple[str, int] | None:
    """What stands together around the last digit that is in no word, and where that digit is; None without one."""
    last = _last_digit(text)
    if last is None:
        return None
    start = max(0, last - _BEFORE)
    return _expression(text[start : last + _AFTER], last - start, choices="or", bullets=True), last


def _first_digit(text: str) -> int | None:
    """Where the number begins that a text begins with; None where words come before it."""
    filler = _FILLER.match(text)
    assert filler is not None
    return filler.end() if _DIGIT.match(text, filler.end()) else None


def _last_digit(text: str) -> int | None:
    """Where the last digit is that stands in no word, such as that of H2O."""
    last = None
    for match in _DIGIT.finditer(text):
        if match["inside"] is None or text[match.start() - 1 : match.start()] == "\\":
            last = match.end() - 1
    return last


def _expression(text: str, at: int, choices: str, bullets: bool = False) -> str:
    """What stands together around a digit, as far as it is mathematics.

    choices: words between two numbers that make them alternatives.    bullets: whether a dash that begins a line and has
    words behind its number is one, and no sign.
    """
    tokens = list(_TOKEN.finditer(text))
    middle = next(place for place, token in enumerate(tokens) if token.end() > at)
    first = last = middle
    while first > 0 and _belongs(tokens, first - 1, -1, choices):
        first -= 1
    while last + 1 < len(tokens) and _belongs(tokens, last + 1, 1, choices):
        last += 1
    end = tokens[last].end()
    more = _MORE.match(text, end)
    found = text[tokens[first].start() : more.end() if more else end]
    if bullets and _is_bullet(text, tokens[first].start(), tokens[last].end(), found):
        found = found.lstrip().lstrip("-*+−–")
    return _balanced(found.strip().rstrip("!"))


def _belongs(tokens: list[re.Match[str]], place: int, step: int, choices: str) -> bool:
    token = tokens[place][0]
    before = tokens[place - 1][0] if place else ""
    after = tokens[place + 1][0] if place + 1 < len(tokens) else ""
    if token == "\n" or token in {"\\\\", "\\(", "\\)", "\\[", "\\]", "\\boxed"}:
        return False
    if token[0] in ".:;!," and (after[:1].isspace() or not after):  # a sentence ends here, or a list goes on
        beyond = tokens[place + 2][0] if place + 2 < len(tokens) else ""
        return token == "," and beyond[:1].isdigit()
    if token[0].isalpha() and token not in _MATH:
        if token in choices.split("|"):
            other = place + 2 * step
            return 0 <= other < len(tokens) and tokens[other][0][0].isdigit()
        tight = before[-1:] in _TIGHT or after[:1] in _TIGHT or before[-1:].isdigit() or after[:1].isdigit()
        tight = tight and not (len(token) > 1 and before == "(" and after.isspace())
        return tight and not (len(token) > 3 and before.isspace() and after[:1] in "({=")
    return token[0] in _MATH or token[0].isdigit() or token[0].isspace() or token[0] == "\\"


def _is_bullet(text: str, start: int, end: int, found: str) -> bool:
    begins_line = not text[:start].strip(" \t") or text[:start].rstrip(" \t").endswith("\n")
    words_follow = re.match(r"[ \t]*[A-Za-z]{2}", text[end:]) is not None
    return begins_line and words_follow and re.match(r"\s*[-*+−–]\s+", found) is not None


def _balanced(text: str) -> str:
    """Without brackets at either end that have no partner in it."""
    for opening, closing in ("()", "[]", "{}"):
        while text.count(opening) != text.count(closing):
            spare = opening if text.count(opening) > text.count(closing) else closing
            if spare == opening and text.lstrip("$* ").startswith(spare):
                text = text.lstrip("$* ")[1:]
            elif spare == closing and text.rstrip("$*.,: ").endswith(spare):
                text = text.rstrip("$*.,: ")[:-1]
            elif spare == closing and text.lstrip("$* ").startswith(spare):
                text = text.lstrip("$* ")[1:]
            elif spare == opening and text.rstrip("$* ").endswith(spare):
                text = text.rstrip("$* ")[:-1]
            else:
                break
    return text
