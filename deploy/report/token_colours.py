"""Completions whose tokens are coloured by a value, for a terminal; where it has no colours, the numbers stand in the text."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from rich.text import Text

from deploy.report.numbers import shown
from deploy.report.visible import visible
from deploy.rundir.samples import FoundSample
from deploy.rundir.token_file import Floats, ReadTokens, Value

UNLIKELY_NATS = 5.0
"""A log-prob of minus so much has the strongest colour: a chance of 0.7 %."""
_LEAST_MISMATCH = 0.05
"""The smallest difference that can have the strongest colour, in nats: rounding alone shall not glow."""
_SHADES = {
    -1: ("", "#ffffff on #5b3a12", "#ffffff on #99580c", "#000000 on #f5a742"),
    1: ("", "#ffffff on #173a56", "#ffffff on #1f6299", "#000000 on #72bdf7"),
}
"""From weak to strong, below zero (orange) and above it (blue): told apart without red and green, on dark and on light."""

Coloured = Callable[[FoundSample, int], Text | None]
"""The first so many characters of a completion; None where values of its tokens were not kept."""


def heat(values: Floats, value: Value, most: float) -> Floats:
    """[T] in [-1, 1], how strong the colour of each token is; 0 for none. most: the value that is strongest."""
    scaled = np.nan_to_num(values / (UNLIKELY_NATS if value == "logprob" else most or 1.0))
    return np.clip(scaled, -1.0, 1.0).astype(np.float32)


def strongest(tokens: Sequence[ReadTokens], value: Value) -> float:
    """The value that has the strongest colour in a group."""
    if value == "logprob":
        return UNLIKELY_NATS
    largest = max((float(np.nanmax(np.abs(one.by(value)), initial=0.0)) for one in tokens), default=0.0)
    return max(largest, _LEAST_MISMATCH) if value == "mismatch" else largest


def coloured_text(tokens: ReadTokens, value: Value, most: float, chars: int, colours: bool) -> Text:
    """The first `chars` characters. Without colours a number follows strong tokens; of advantages, every change."""
    text, left = Text(), chars
    values = tokens.by(value)
    heats = heat(values, value, most)
    # nan != nan, so that what an environment said never reads as a change.
    changed = [True, *(a != b and a == a for a, b in pairwise(values.tolist()))]
    for i, piece in enumerate(tokens.texts):
        if left <= 0:
            return text.append(f" … {len(tokens.texts) - i} more tokens", style="dim")
        strong = changed[i] if value == "advantage" else abs(heats[i]) >= 0.5
        text.append(visible(piece[:left]), style=_shade(heats[i]) if colours else "")
        if not colours and strong and np.isfinite(values[i]):
            text.append(f"‹{shown(float(values[i]), '+.3g')}›")
        left -= len(piece)
    return text


def legend(value: Value) -> str:
    """What the colours mean."""
    return {
        "logprob": f"the stronger, the less likely: orange at {-UNLIKELY_NATS:g} nats and below",
        "advantage": "blue: pushed up; orange: pushed down; strongest at the largest of the group",
        "mismatch": "learner - sampler, in nats; blue: the learner finds it likelier; orange: less likely",
    }[value]


def _shade(strength: float) -> str:
    return _SHADES[-1 if strength < 0 else 1][int(min(abs(float(strength)) * 4, 3))]
