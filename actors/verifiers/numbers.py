"""Numbers as people write them, in plain text and in LaTeX, read exactly. Nothing is evaluated but a fraction and a power of ten.

A text is read as one number as a whole or not at all: 2\\sqrt{3}, (1, 2), 5:30 and x^2 are no numbers here.
"""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

from actors.verifiers.answers import LONGEST_ANSWER

_Form = str | Callable[[re.Match[str]], str]
_VULGAR = {
    character: unicodedata.normalize("NFKC", character).replace("⁄", "/")
    for character in map(chr, (*range(0xBC, 0xBF), *range(0x2150, 0x215F), 0x2189))
}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_DASHES = str.maketrans(dict.fromkeys("−–‒﹣－‐‑", "-"))
_BEFORE_FORMS: list[tuple[re.Pattern[str], _Form]] = [
    (re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]{1,8}"), lambda m: f"^{{{m[0].translate(_RAISED)}}}"),
    (re.compile("[" + "".join(_VULGAR) + "]"), lambda m: f" {_VULGAR[m[0]]} "),
]
_TEXT = r"\\(?:text|textrm|textbf|textit|textsf|mathrm|mathbf|mathit|mathsf|mbox|bf|rm|boldsymbol|operatorname)"
_PLAIN = r"[0-9]{1,400}(?:\.[0-9]{1,400})?|\.[0-9]{1,400}"
_PART = rf"-?\s?(?:{_PLAIN})"
_FRACTION_ARGUMENT = rf"\s{{0,3}}(?:\{{\s{{0,3}}({_PART})\s{{0,3}}\}}|([0-9]))"
_FORMS: list[tuple[re.Pattern[str], _Form]] = [
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\(?:left|right|displaystyle|textstyle|limits|bigl?|bigr|Bigl?|Bigr)(?![A-Za-z])"), ""),
    (re.compile(r"\\[,;: ()\[\]]|~|\\q?quad(?![A-Za-z])|\\thinspace(?![A-Za-z])"), " "),
    (re.compile(_TEXT + r"\s{0,3}\{([^{}]{0,80})\}"), r" \1 "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\?%"), " percent "),
    (re.compile(r"\^?(?:\{\s?(?:\\circ|\\degree|°)\s?\}|(?:\\circ|\\degree|°)(?![A-Za-z]))"), " degrees "),
    (re.compile(r"(?:\\times|\\cdot|[×·⋅*])(?![A-Za-z*])"), " * "),
    (re.compile(r"\\(?:approx|simeq|thickapprox)(?![A-Za-z])|[≈≃≅]"), " ≈ "),
    (re.compile(r"[€£¥]|\\(?:euro|pounds|yen)(?![A-Za-z])"), " "),
    (
        re.compile(rf"\\[dtc]?frac(?![A-Za-z]){_FRACTION_ARGUMENT}{_FRACTION_ARGUMENT}"),
        lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ",
    ),
    (re.compile(rf"\{{?\s{{0,3}}({_PART})\s{{0,3}}\\over(?![A-Za-z])\s{{0,3}}({_PLAIN})\s{{0,3}}\}}?"), r" \1/\2 "),
]
_AROUND = " \t\r\n*_`\"'“”"
_OUTER = {"(": ")", "[": "]", "{": "}"}
_GROUPED = (
    r"[0-9]{1,3}(?:,[0-9]{3}){1,130}(?:\.[0-9]{1,400})?|[0-9]{1,2}(?:,[0-9]{2}){1,130},[0-9]{3}(?:\.[0-9]{1,400})?"
    r"|[0-9]{1,3}(?:[ '’][0-9]{3}){1,130}(?:[.,][0-9]{1,400})?"
)
_EUROPEAN = r"[0-9]{1,3}(?:\.[0-9]{3}){1,130},[0-9]{1,400}|[0-9]{1,3}(?:\.[0-9]{3}){2,130}"
_EXPONENT = r"\s?(?:\^|\*\s?\*)\s?(?:\{\s?([-+]?\s?[0-9]{1,3})\s?\}|([-+]?[0-9]{1,3}))"
_VALUE = re.compile(
    rf"(?P<sign>[-+]?)\s{{0,3}}(?:"
    rf"(?P<whole>[0-9]{{1,400}})\s{{1,3}}(?P<part>[0-9]{{1,400}})\s?[/⁄]\s?(?P<parts>[0-9]{{1,400}})"
    rf"|(?P<top>{_GROUPED}|{_PART})\s?[/⁄]\s?(?P<bottom>{_GROUPED}|{_PLAIN})"
    rf"|(?:(?P<mantissa>{_GROUPED}|{_PLAIN})\s{{0,3}}[*x]\s{{0,3}})?10{_EXPONENT}"
    rf"|(?P<number>{_EUROPEAN}|{_GROUPED}|{_PLAIN})(?:[eE](?P<power>[-+]?[0-9]{{1,3}}))?"
    rf")(?![0-9])(?P<rest>.{{0,{LONGEST_ANSWER}}})",
    re.DOTALL,
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SHORT = """m g s h L l J N W V A K C F in ft yd mi km cm mm nm kg mg lb oz ml mL dL hr mph kph kmh pm am Hz kHz MB GB cc sq cu
st nd rd th min sec deg rad mol Pa kPa kW MW"""
_SHORT_UNITS = frozenset(_SHORT.split())
"""Units that may touch their number, or are a letter long; any other letter behind a number is a variable."""
_OPERATING = """or and to plus minus times over squared cubed half halves third thirds fourth fourths fifth fifths quarter quarters
point more less than mod modulo choose factorial hundred dozen root radical pi by divided base not else if through tau"""
_NO_UNITS = frozenset(_OPERATING.split())
"""Words that make another number of the one before them."""
_WORD = re.compile(
    r"(?P<gap>\s{0,3}[-/*]?\s{0,3})(?P<word>[A-Za-zµΩ]{1,40})\.?(?P<power>\s?(?:\^\s?\{?\s?-?[1-4]\s?\}?))?"
)
_ORDINAL = re.compile(r"\^\s?\{?\s{0,3}(?:st|nd|rd|th)\s{0,3}\}?")
_HEDGE = re.compile(
    r"(?:(?:it|that|this|about|around|approximately|approx|roughly|exactly|nearly|only|just|total|the|final|answer|is|are|was|of|a|an|US)\b[.:]?\s{0,3}|≈\s{0,3})+",
    re.IGNORECASE,
)
_NO_EQUATION = re.compile(
    r"\\n?eq(?![A-Za-z])|\\ne(?![A-Za-z])|[!<>:]=|=[<>]|[<>≠≤≥∈]|\\(?:[lg]eq?|in|pm|mp)(?![A-Za-z])|[±∓]"
)

_SEVERAL = re.compile(r";|\bor\b|\band\b")


def read_number(text: str) -> Fraction | None:
    """The number that a text is as a whole; None where it is none, or more than one.

    Read are signs of all kinds and with spaces, thousands in groups (commas, spaces, apostrophes, European, Indian), decimals,
    a/b, \\frac, \\over, vulgar fractions, mixed numbers, scientific notation and powers of ten, what stands behind the last
    `=` or `≈`, and units, currencies and percent, which are dropped: 50% is 50.
    """
    if len(text) > LONGEST_ANSWER:
        return None
    text = _plain(text)
    if _NO_EQUATION.search(text):
        return None
    *before, text = re.split("[=≈]", text)
    if any(_SEVERAL.search(each) for each in before) or (len(before) > 1 and any("," in each for each in before)):
        return None
    text = _bare(text)
    hedge = _HEDGE.match(text)
    match = _VALUE.fullmatch(text, hedge.end() if hedge else 0)
    if match is None:
        return None
    value, scale = _value(match), _scale(match["rest"])
    return None if value is None or scale is None else value * scale


def _plain(text: str) -> str:
    """One way of writing for each thing that has several, in ASCII but for `≈`."""
    text = text.replace("\\$", " ").replace("$", " ")
    for pattern, form in _BEFORE_FORMS:
        text = pattern.sub(form, text)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_DASHES)
        text = "".join(str(unicodedata.decimal(each)) if each.isdecimal() else each for each in text)
    for pattern, form in _FORMS:
        text = pattern.sub(form, text)
    return text


def _bare(text: str) -> str:
    """Without what stands around it: spaces, emphasis, sentence marks, and brackets that close where it ends."""
    while True:
        text = text.strip(_AROUND).rstrip(_AROUND + ".,;:")
        close, inside = _OUTER.get(text[:1]), text[1:-1]
        if close is None or not text.endswith(close) or re.search(r"[()\[\]{}]", inside):
            return text
        if close != "}" and "," in inside:  # (1,234) is a pair
            return text
        text = text[1:-1]


def _value(match: re.Match[str]) -> Fraction | None:
    try:
        if match["whole"] is not None:
            part = Fraction(int(match["part"]), int(match["parts"]))
            value = int(match["whole"]) + part if part < 1 else None
        elif match["top"] is not None:
            value = _decimal(match["top"]) / _decimal(match["bottom"])
        elif match["number"] is not None:
            value = _decimal(match["number"]) * Fraction(10) ** int(match["power"] or 0)
        else:
            exponent = next(filter(None, (match[group] for group in _exponent_groups(match))))
            value = _decimal(match["mantissa"] or "1") * Fraction(10) ** int(exponent.replace(" ", ""))
    except ZeroDivisionError:
        return None
    return None if value is None else -value if match["sign"] == "-" else Fraction(value)


def _exponent_groups(match: re.Match[str]) -> tuple[int, int]:
    first = match.re.groupindex["mantissa"] + 1
    return first, first + 1


def _decimal(text: str) -> Fraction:
    text = re.sub(r"[ '’]", "", text)
    if re.fullmatch(_EUROPEAN, text):
        return Fraction(text.replace(".", "").replace(",", "."))
    if re.fullmatch(r"[0-9]+,[0-9]+", text) and not re.fullmatch(r"[0-9]{1,3},[0-9]{3}", text):
        return Fraction(text.replace(",", "."))  # decimals behind spaced thousands
    return Fraction(text.replace(",", ""))


def _scale(rest: str) -> int | None:
    """What the words behind a number multiply it by: 1 for units, None where they are no units."""
    if ordinal := _ORDINAL.match(rest):
        rest = rest[ordinal.end() :]
    scale, at = 1, 0
    while at < len(rest) and not rest[at:].isspace():
        found = _WORD.match(rest, at)
        if found is None:
            return None
        word, gap = found["word"], found["gap"].strip()
        if word.lower() in _NO_UNITS or (gap in {"/", "*"} and at == 0) or (gap == "-" and len(word) < 3):
            return None
        if (len(word) == 1 or (not found["gap"] and len(word) < 4)) and word not in _SHORT_UNITS:
            return None
        scale *= _SCALES.get(word.lower(), 1)
        at = found.end()
    return scale
