"""Prompts as tries: what prompts of one kind share at their beginning is read once, and so is a prompt for all its completions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.league.policy import Past, Policy, Texts

Tokens = Sequence[npt.NDArray[np.int64]]
"""Token ids of several texts."""
WIDTH = 64
"""Most tokens of a trie of several prompts: wider rows would save more reading, and cost more padding in attention."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """B prompts that a policy has read."""

    past: Past
    start: torch.Tensor
    """[B, H] hidden states at their last tokens."""
    rows: torch.Tensor
    """[B] row of `past` that each is in."""
    segments: torch.Tensor
    """[B] segment that each ends in."""
    lengths: torch.Tensor
    """[B] tokens."""
    parents: torch.Tensor
    """[S] of the segments so far."""

    def detached(self) -> "Prompts":
        """The same without a gradient."""
        start = self.start.detach()
        return Prompts(self.past.detached(), start, self.rows, self.segments, self.lengths, self.parents)

    def after(self, of: torch.Tensor, member: torch.Tensor, at: torch.Tensor, tokens: torch.Tensor, size: int) -> Texts:
        """What was said after the prompts. All [T].

        of: prompt that each token comes after.    member: which of the `size` completions of that prompt it is in.
        at: place in the completion.
        """
        return Texts(
            tokens=tokens,
            rows=self.rows[of],
            segments=len(self.parents) + of * size + member,
            places=self.lengths[of] + at,
            parents=torch.cat([self.parents, self.segments.repeat_interleave(size)]),
        )


def read_prompts(policy: Policy, prompts: Tokens) -> Prompts:
    """Read prompts. prompts: token ids of each."""
    parts: list[npt.NDArray[np.int64]] = []
    rows, firsts, parents = [], [], []
    row_of, segment_of = (np.empty(len(prompts), dtype=np.int64) for _ in range(2))

    def add(part: npt.NDArray[np.int64], row: int, first: int, parent: int) -> int:
        parts.append(part)
        rows.append(row)
        firsts.append(first)
        parents.append(parent)
        return len(parts) - 1

    for row, (members, shared) in enumerate(bundles(prompts)):
        root = add(prompts[members[0]][:shared], row, 0, -1) if shared else -1
        for member in members:
            row_of[member] = row
            segment_of[member] = add(prompts[member][shared:], row, shared, root)
    sizes = np.array([len(part) for part in parts])
    ends = sizes.cumsum()
    within = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
    texts = Texts(
        tokens=torch.from_numpy(np.concatenate(parts)),
        rows=torch.from_numpy(np.repeat(rows, sizes)),
        segments=torch.from_numpy(np.repeat(np.arange(len(parts)), sizes)),
        places=torch.from_numpy(np.repeat(firsts, sizes) + within),
        parents=torch.tensor(parents),
    )
    hidden, past = policy.read(texts)
    start = hidden.index_select(0, torch.from_numpy(ends[segment_of] - 1))
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return Prompts(past, start, torch.from_numpy(row_of), torch.from_numpy(segment_of), lengths, texts.parents)


def bundles(prompts: Tokens) -> Iterator[tuple[list[int], int]]:
    """Which prompts share a trie, and how many tokens at their beginning; every prompt has at least one token of its own."""
    order = sorted(range(len(prompts)), key=lambda row: prompts[row].tolist())
    members, shared, width = [order[0]], 0, len(prompts[order[0]])
    for row in order[1:]:
        common = _common(prompts[members[0]], prompts[row])
        common = min(shared, common) if len(members) > 1 else common
        wider = width + len(prompts[row]) - common + (shared - common) * (len(members) - 1)
        saved = common - (shared - common) * (len(members) - 1)
        if common and saved > 0 and wider <= WIDTH:
            members, shared, width = [*members, row], common, wider
        else:
            yield members, shared
            members, shared, width = [row], 0, len(prompts[row])
    yield members, shared


def _common(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> int:
    """With how many same tokens two prompts begin, the last of each left out."""
    length = min(len(one), len(other)) - 1
    differs = np.flatnonzero(one[:length] != other[:length])
    return int(differs[0]) if len(differs) else length
