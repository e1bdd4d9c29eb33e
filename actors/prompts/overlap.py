"""What stands in a pool more than once: questions that are alike among those trained on, and between them and those held out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.prompts.pool import PromptPool
from actors.prompts.prompt import Prompt

NEAR = 0.95
"""Cosine of two embeddings from which on their questions are called near. With the encoder that comes along, reworded questions and
some with another number are (0.95 to 1), and those of another name mostly not (0.8 to 0.9)."""
EXAMPLES = 3
_ROWS_AT_ONCE = 512
_SENTENCE_MARKS = re.compile(r"[?\"'“”‘’«»…]|(?<![\d)])!|[.,;:](?!\d)")
"""Not those within numbers and formulas: 3.5, 1,000, 12:30, 5!."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Prompts with a like one elsewhere."""

    prompts: int
    """How many of those that were looked at have one: of the training prompts for duplicates, else of those held out."""
    examples: tuple[tuple[Prompt, Prompt], ...]
    """Some of them, each with the training prompt that it is like."""


def spoken(prompt: Prompt) -> str:
    """What is asked, whatever its case, spaces and the marks of sentences; signs count, for 9 + 9 is not 9 - 9, nor 3.5 35."""
    asked = prompt.question if prompt.question and not prompt.before else prompt.asked
    return " ".join(_SENTENCE_MARKS.sub(" ", asked.casefold()).split())


def exact_duplicates(pool: PromptPool) -> Overlap:
    """Training prompts that ask in the same words as an earlier one, under another id."""
    first: dict[str, Prompt] = {}
    found = [
        (prompt, known) for prompt in pool.train if (known := first.setdefault(spoken(prompt), prompt)) is not prompt
    ]
    return Overlap(len(found), tuple(found[:EXAMPLES]))


def exact_overlap(pool: PromptPool) -> Overlap:
    """Held-out prompts that ask in the same words as a training prompt."""
    train = {spoken(prompt): prompt for prompt in reversed(pool.train)}
    found = [(prompt, train[words]) for prompt in pool.held_out if (words := spoken(prompt)) in train]
    return Overlap(len(found), tuple(found[:EXAMPLES]))


def near_overlap(pool: PromptPool, train: np.ndarray, held_out: np.ndarray, near: float = NEAR) -> Overlap:
    """Held-out prompts with a training prompt whose embedding has a cosine of `near` or more, the nearest first.

    train, held_out: [N, d] and [M, d], of unit length, in the order of the pool. Those of the same words are among them.
    """
    closest, which = _closest(held_out, train)
    rows = [int(row) for row in np.argsort(-closest, kind="stable") if closest[row] >= near]
    return Overlap(len(rows), tuple((pool.held_out[row], pool.train[int(which[row])]) for row in rows[:EXAMPLES]))


def near_duplicates(pool: PromptPool, train: np.ndarray, near: float = NEAR) -> Overlap:
    """Training prompts with an earlier one whose embedding has a cosine of `near` or more, the nearest first; as `near_overlap`."""
    closest, which = _closest(train, train, earlier=True)
    rows = [int(row) for row in np.argsort(-closest, kind="stable") if closest[row] >= near]
    return Overlap(len(rows), tuple((pool.train[row], pool.train[int(which[row])]) for row in rows[:EXAMPLES]))


def _closest(rows: np.ndarray, among: np.ndarray, earlier: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the largest cosine and where it is; [M] each. Some rows at a time: all products would not fit.

    earlier: only among the rows before it.
    """
    closest, which = np.full(len(rows), -1.0), np.zeros(len(rows), dtype=np.int64)
    for start in range(0, len(rows) if len(among) else 0, _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE]
        products = some @ (among[: start + len(some)] if earlier else among).T
        if earlier:
            products[np.arange(products.shape[1]) >= start + np.arange(len(some))[:, None]] = -1.0
        which[start : start + _ROWS_AT_ONCE] = products.argmax(axis=1)
        closest[start : start + _ROWS_AT_ONCE] = products.max(axis=1)
    return closest, which


def sentences(
    duplicates: Overlap, overlap: Overlap, near_twins: Overlap | None = None, near: Overlap | None = None
) -> Sequence[str]:
    """What should be known of them, one sentence each; nothing where nothing stands twice."""
    said = [
        (duplicates, "training prompts ask in the words of an earlier one; drop them, or count on their weight"),
        (overlap, "held-out prompts ask in the words of a training prompt; evaluations are too good by them"),
    ]
    if near_twins is not None:
        said.append((near_twins, f"training prompts are near an earlier one (cosine of {NEAR:g} or more)"))
    if near is not None:
        said.append((near, f"held-out prompts are near a training prompt (cosine of {NEAR:g} or more)"))
    return [f"{one.prompts} {text}: {_shown(one)}" for one, text in said if one.prompts]


def _shown(overlap: Overlap) -> str:
    pairs = [f"{_short(one)} ({one.source}) and {_short(other)} ({other.source})" for one, other in overlap.examples]
    return "; ".join(pairs) + ("; …" if overlap.prompts > len(pairs) else "")


def _short(prompt: Prompt) -> str:
    asked = prompt.question or prompt.text
    return repr(asked if len(asked) <= 80 else f"{asked[:79]}…")
