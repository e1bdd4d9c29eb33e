"""Scorers of reasoning-gym that pay for what is wrong, or fail on what is only of another form, mended. A test probes all others."""

import re
from collections.abc import Callable
from typing import Any

from actors.verifiers.numbers import read_number

Entry = dict[str, Any]
COIN_TOLERANCE = 1e-4
"""What the scorer of `coin_flip` allows; of small probabilities a hundredth, since else 0 would be right."""


def mended(task: str, score: Callable[[str, Entry], float]) -> Callable[[str, Entry], float]:
    """The scorer of this task as it should be: `score` itself for tasks whose scorers are right."""
    if task in WRONG_FORMS:
        return _without_errors(score, WRONG_FORMS[task])
    return MENDED.get(task, lambda score: score)(score)


def _game_of_life_halting(score: Callable[[str, Entry], float]) -> Callable[[str, Entry], float]:
    """Theirs compares bool() of two texts, which is True for both of "True" and "False"."""
    return lambda answer, entry: float(answer.strip().casefold() == str(entry["answer"]).casefold())


def _complex_arithmetic(score: Callable[[str, Entry], float]) -> Callable[[str, Entry], float]:
    """Theirs pays min(1, exp(-distance)), which is 1 where the distance is not a number."""
    return lambda answer, entry: 0.0 if re.search("nan|inf", answer, re.IGNORECASE) else score(answer, entry)


def _coin_flip(score: Callable[[str, Entry], float]) -> Callable[[str, Entry], float]:
    """Theirs pays the share of leading characters that agree, which is all of "0" for each of 0.375; and it works out 1e99999999."""

    def mended_score(answer: str, entry: Entry) -> float:
        found, expected = read_number(answer), read_number(entry["answer"])
        if found is None or expected is None:
            return 0.0
        return float(abs(found - expected) <= min(COIN_TOLERANCE, float(expected) / 100))

    return mended_score


def _without_errors(
    score: Callable[[str, Entry], float], wrong_form: tuple[type[Exception], ...]
) -> Callable[[str, Entry], float]:
    def mended_score(answer: str, entry: Entry) -> float:
        try:
            return score(answer, entry)
        except wrong_form:
            return 0.0

    return mended_score


MENDED = {
    "coin_flip": _coin_flip,
    "complex_arithmetic": _complex_arithmetic,
    "game_of_life_halting": _game_of_life_halting,
}
WRONG_FORMS: dict[str, tuple[type[Exception], ...]] = {
    "boxnet": (AttributeError, TypeError),
    "game_of_life": (KeyError,),
    "prime_factorization": (ValueError,),
}
"""What scorers raise where the answer is of another form than they read: a wrong answer, and no error."""
