"""A second opinion on answers, which shares nothing with the verifier `math`: formulas are worked out in floating point.

Usage: python -m benchmarks.second_opinion [PAIRS.jsonl]. Judges hand-checked pairs by a second implementation (of `math` this one, of
`numeric` math-verify with an extraction of its own), and prints where the two differ. Lines: `verifier`, `gold`, `answer`, `right`.
"""

import cmath
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from actors.verifiers.math import find_answer

PAIRS = Path(__file__).parents[1] / "tests" / "data" / "answer_pairs.jsonl"
POINTS = (0.7310585, 1.6180339, 2.2360679)
"""Where expressions in variables are compared: each variable has another of these, shifted by its letter."""
_TOKEN = re.compile(r"\s*(\\[A-Za-z]+|\\.|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|.)", re.DOTALL)
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;:! ]|\$|\^?\{?\\circ\}?|\\(?:text|mathrm)\s?\{[^{}]*\}(?:\^\{?\d\}?)?|(?<=\d) (?:cm|km|m|kg|g|s)\b"
)
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "\\sin": cmath.sin, "\\cos": cmath.cos, "\\tan": cmath.tan, "\\ln": cmath.log, "\\log": cmath.log10, "\\exp": cmath.exp, "\\arctan": cmath.atan,
}  # fmt: skip
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}


class UnreadableError(ValueError):
    """No formula that this reader knows."""


def same(gold: str, answer: str) -> bool | None:
    """Whether two answers are equal at every point; None where one of them cannot be read."""
    try:
        return all(_alike(_read(gold, point), _read(answer, point)) for point in POINTS)
    except (UnreadableError, ArithmeticError, ValueError, RecursionError):
        return None


class _Reader:
    """Works out one formula, by recursive descent."""

    def __init__(self, text: str, point: float) -> None:
        self._tokens = [token for token in _TOKEN.findall(text.strip()) if token.strip()]
        self._at, self._point = 0, point

    def whole(self) -> complex:
        value = self._sum()
        if self._peek():
            raise UnreadableError(self._peek())
        return value

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, expected: str = "") -> str:
        token = self._peek()
        if not token or (expected and token != expected):
            raise UnreadableError(token)
        self._at += 1
        return token

    def _sum(self) -> complex:
        value = self._product()
        while self._peek() in {"+", "-"}:
            value = value + self._product() if self._take() == "+" else value - self._product()
        return value

    def _product(self) -> complex:
        value = self._signed()
        while (token := self._peek()) and token not in {"+", "-", ")", "}", "]", ",", "|"}:
            if token in {"*", "\\cdot", "\\times", "/", "\\div"}:
                self._take()
            value = value / self._signed() if token in {"/", "\\div"} else value * self._signed()
        return value

    def _signed(self) -> complex:
        if self._peek() in {"-", "+"}:
            return -self._signed() if self._take() == "-" else self._signed()
        value = self._atom()
        if self._peek() == "^":
            self._take()
            value = value ** self._group()
        if self._peek() == "!":
            self._take()
            value = complex(math.gamma(value.real + 1))
        return value

    def _group(self) -> complex:
        """What `^`, `\\frac` and `\\sqrt` are followed by: braces, or one thing."""
        token = self._peek()
        if token.isdigit() and len(token) > 1:  # \\frac12
            self._tokens[self._at : self._at + 1] = list(token)
        return self._signed() if token == "-" else self._atom()

    def _atom(self) -> complex:
        token = self._take()
        if token[0].isdigit() or token[0] == ".":
            return complex(float(token))
        if token in {"(", "{", "["}:
            value = self._sum()
            self._take(_CLOSING[token])
            return value
        if token in {"\\frac", "\\dfrac", "\\tfrac", "\\cfrac"}:
            return self._group() / self._group()
        if token == "\\binom":
            top, bottom = self._group().real, self._group().real
            return complex(math.comb(int(top), int(bottom)))
        if token == "\\sqrt":
            root = 2.0
            if self._peek() == "[":
                root = self._atom().real
            return self._group() ** (1 / root)
        if token in _FUNCTIONS:
            return _FUNCTIONS[token](self._signed())
        if token in {"\\pi", "π"}:
            return complex(math.pi)
        if token in {"i", "e"}:
            return 1j if token == "i" else complex(math.e)
        if token.isalpha() and len(token) == 1:
            return complex(self._point + ord(token) % 7)
        raise UnreadableError(token)


_Read = tuple[str, tuple[Any, ...]]
_COMMANDS_READ = re.compile(
    r"\\(?:frac|dfrac|tfrac|cfrac|sqrt|binom|pi|pm|cdot|times|div|sin|cos|tan|ln|log|exp|arctan)(?![A-Za-z])"
)
_NOT_READ = re.compile(r"[<>:_≤≥∪]|\\[A-Za-z]|[A-Za-z]{3}")
_ASSIGNED = re.compile(r"\s*(?:[a-z]|\([a-z], ?[a-z]\))\s*=\s*(.*)")


def _read(text: str, point: float) -> _Read:
    """Brackets and elements: of one formula none and it, of a list or a set `{` and its elements in order of size."""
    text = text.replace("\\{", "⟨").replace("\\}", "⟩").replace("\\%", "%")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))|\{,\}", "", _DROPPED.sub("", text).strip().rstrip("."))
    if _NOT_READ.search(_COMMANDS_READ.sub("", text)):
        raise UnreadableError(text)
    if assigned := _ASSIGNED.fullmatch(text):
        text = assigned[1]
    if text.startswith("\\pm"):
        value = _Reader(text[3:], point).whole()
        return "{", _ordered([value, -value])
    if text.endswith("%"):
        value = _Reader(text[:-1], point).whole()
        return "%", (value, value / 100)
    brackets, inside = _outer(text)
    parts = _parts(inside)
    if len(parts) == 1 and brackets != "⟨⟩":
        return "", (_Reader(text, point).whole(),)
    elements = [_Reader(part, point).whole() for part in parts]
    return ("{", _ordered(elements)) if brackets in {"", "⟨⟩"} else (brackets, tuple(elements))


def _outer(text: str) -> tuple[str, str]:
    """The brackets that open at the beginning and close at the end, and what is inside of them."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "([⟨") - (character in ")]⟩")
        if depth == 0:
            return ("", text) if place == 0 or place < len(text) - 1 else (text[0] + text[-1], text[1:-1])
    return "", text


def _parts(text: str) -> list[str]:
    """What stands between commas that are in no brackets."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in "([{⟨") - (character in ")]}⟩")
        if character == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def _ordered(values: list[complex]) -> tuple[complex, ...]:
    return tuple(sorted(values, key=lambda value: (round(value.real, 9), round(value.imag, 9))))


def _alike(gold: _Read, answer: _Read) -> bool:
    (kind, ours), (other, theirs) = gold, answer
    if "%" in {kind, other}:
        return any(_close(a, b) for a in ours for b in theirs)
    return kind == other and len(ours) == len(theirs) and all(map(_close, ours, theirs))


def _close(a: complex, b: complex) -> bool:
    return abs(a - b) <= 1e-9 * max(1.0, abs(a), abs(b))


def by_math_verify(gold: str, completion: str) -> bool:
    """What math-verify says with its own extraction and defaults, but for its timeouts."""
    from math_verify import parse, verify

    return bool(
        verify(parse(f"${gold}$", parsing_timeout=None), parse(completion, parsing_timeout=None), timeout_seconds=None)
    )


def second_verdict(pair: Mapping[str, Any]) -> bool | None:
    """What the second implementation says of a pair; None where it has no opinion."""
    if pair["verifier"] == "numeric":
        return by_math_verify(pair["gold"], pair["answer"])
    answer = find_answer(pair["answer"])
    return False if answer is None else same(pair["gold"], answer)


def main(path: Path) -> None:
    """Print how often the second implementations agree with the pairs, and every pair that they judge otherwise."""
    counts: Counter[str] = Counter()
    for pair in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if pair["verifier"] in {"math", "numeric"}:
            said = second_verdict(pair)
            verdict = "no opinion" if said is None else "agrees" if said == pair["right"] else "differs"
            counts[f"{pair['verifier']}: {verdict}"] += 1
            if verdict == "differs":
                by_hand = "right" if pair["right"] else "wrong"
                print(f"{pair['verifier']}\t{pair['gold']}\t{pair['answer']!r}\tby hand {by_hand}\t{pair['reason']}")
    for name, count in sorted(counts.items()):
        print(f"{name}: {count}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PAIRS)
