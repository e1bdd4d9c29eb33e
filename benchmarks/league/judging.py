"""Verdicts: a completion is right if it is the gold answer, token by token, so that its probability is known exactly.

The product's verifiers also take what only looks like it (`07` for 7); tests/unit/test_league.py counts how seldom that is.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from actors.verifiers import BUILT_IN
from benchmarks.league.sampling import Completions
from benchmarks.league.tasks import Indices, Split
from moments_service.blend import Array


@dataclass(frozen=True, slots=True)
class Noise:
    """A verifier that turns some rewards around, whatever was said."""

    share: float
    flips: Callable[[str, int], bool]
    """From a prompt's id and a completion's place in its group."""


class Judge:
    """Rewards of completions of some prompts, and what to expect of them."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._noise = {name: _noise(name) for name in {prompt.verifier for prompt in split.prompts}}

    def rewards(self, rows: Indices, said: Completions) -> Array:
        """[M, G] 0 or 1. rows: [M] of the split."""
        tokens, lengths = said.tokens.numpy(), said.lengths.numpy()
        rewards = np.zeros(lengths.shape)
        for group, row in enumerate(rows.tolist()):
            answer, prompt = self._split.answers[row], self._split.prompts[row]
            if len(answer) <= tokens.shape[2]:
                same = (tokens[group, :, : len(answer)] == answer).all(axis=1)
                rewards[group] = same & (lengths[group] == len(answer))
            if noise := self._noise[prompt.verifier]:
                flips = [noise.flips(prompt.prompt_id, place) for place in range(lengths.shape[1])]
                rewards[group] = np.abs(rewards[group] - np.array(flips))
        return rewards

    def expected(self, rows: Indices, right: Array) -> Array:
        """[M] mean reward of prompts that are answered right with probability `right`."""
        shares = [noise.share if (noise := self._noise[self._split.prompts[row].verifier]) else 0.0 for row in rows]
        flipped = np.array(shares)
        return right * (1.0 - flipped) + (1.0 - right) * flipped


def _noise(verifier: str) -> Noise | None:
    """What a verifier adds to the truth. Raises ValueError for one that may mean something else by it."""
    if verifier in BUILT_IN:
        return None
    module = importlib.import_module(verifier.partition(":")[0])
    try:
        return Noise(module.FLIPPED, module.is_flipped)
    except AttributeError:
        raise ValueError(
            f"verifier {verifier}: the league judges by the gold answer; one of its own must say what it adds, as "
            "FLIPPED and is_flipped of its module"
        ) from None
