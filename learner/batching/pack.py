"""From samples to microbatches: tries in which what samples begin with stands once, weighted so that the loss is a plain sum."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from actors.rollout.sample import Sample
from learner.aggregations import Aggregation, Totals
from learner.batching.packed import Index, PackedBatch, Segments
from learner.batching.split import balance
from learner.batching.trie import Trie, build_trie, common_prefix, lexicographic

ScoredSamples = tuple[tuple[Sample, ...], npt.NDArray[np.float64]]
"""The samples of one group, and the advantage of each: [G], NaN leaves a sample out."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A trie whose tokens predict N: arrays as in `PackedBatch`."""

    trie: Trie
    sources: Index
    targets: Index
    sample: Index
    group: Index
    advantages: npt.NDArray[np.float32]
    rollout_logprobs: npt.NDArray[np.float32]
    temperatures: npt.NDArray[np.float32]
    lag: Index


def check_group(samples: Sequence[Sample], advantages: npt.NDArray[np.float64]) -> None:
    """Raise ValueError for a group that cannot be trained on; the message names it."""
    name = f"group {samples[0].group_id}" if samples else "a group"
    if len(samples) != len(advantages):
        raise ValueError(f"{name}: {len(samples)} samples and {len(advantages)} advantages; they must be as many")
    if np.isinf(advantages).any():
        raise ValueError(f"{name}: advantages {advantages.tolist()} are not all finite")
    for sample in samples:
        if not sample.temperature > 0:
            raise ValueError(f"{name}: sampled at temperature {sample.temperature}; training needs > 0")
        if not np.isfinite(sample.logprobs).all():
            raise ValueError(f"{name}: log-probs of sample {sample.index} are not all finite")


def trained(samples: Sequence[Sample], advantages: npt.NDArray[np.float64]) -> list[int]:
    """Indices of the samples that have an advantage and at least one trained token."""
    return [i for i, sample in enumerate(samples) if not np.isnan(advantages[i]) and sample.loss_mask.any()]


def count(groups: Sequence[ScoredSamples]) -> Totals:
    """How much there is to train on here."""
    chosen = [[samples[i] for i in trained(samples, advantages)] for samples, advantages in groups]
    return Totals(
        groups=sum(1 for samples in chosen if samples),
        samples=sum(map(len, chosen)),
        tokens=sum(sample.trained_tokens for samples in chosen for sample in samples),
    )


def pack(
    groups: Sequence[ScoredSamples],
    aggregation: Aggregation,
    totals: Totals,
    version: int,
    share_prompt: bool,
    microbatch_tokens: int,
    padded: bool = False,
    fill_tokens: int | None = None,
) -> list[PackedBatch]:
    """Microbatches of one optimiser step on this rank; none where there is nothing to train on.

    totals: of the whole step, over all ranks.    version: of the policy that is trained.    share_prompt: whether what samples
    of a group begin with stands once.    microbatch_tokens: most tokens of a microbatch, unless a single sample has more.
    padded: whether samples will be padded to the longest of their microbatch, and the padding counts.    fill_tokens: how many
    tokens several tries together may have, where that is less; a single one still may have `microbatch_tokens`.
    """
    rows: list[_Row] = []
    first = 0
    for number, (samples, advantages) in enumerate(groups):
        for trie, members in _tries(samples, trained(samples, advantages), share_prompt, microbatch_tokens):
            rows.append(_make_row(samples, advantages, trie, members, first, number, version))
        first += len(samples)
    if not rows:
        return []
    sample, group = (np.concatenate(parts) for parts in zip(*((row.sample, row.group) for row in rows), strict=True))
    weights = aggregation(sample, group, totals).astype(np.float32)
    split = np.split(weights, np.cumsum([len(row.targets) for row in rows])[:-1])
    sizes = [len(row.trie.tokens) for row in rows]
    most = min(microbatch_tokens, fill_tokens or microbatch_tokens)
    batches = _padded_batches(sizes, most) if padded else _even_batches(sizes, most)
    return [_collate([rows[i] for i in batch], np.concatenate([split[i] for i in batch])) for batch in batches]


def empty_batch() -> PackedBatch:
    """One token outside the mask: a rank that has run out of tries must still take part in every collective."""
    one, zero = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    trie = Trie(tokens=one, positions=one, lengths=one + 1, parents=one - 1, places=(one,))
    return _collate([_Row(trie, one, one, one, one, zero, zero, zero + 1, one)], zero, mask=False)


def _even_batches(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Indices by microbatch, as few as hold `most` tokens each, of like size."""
    count = max(1, -(-sum(sizes) // most))
    while True:
        batches = balance(sizes, count)
        if all(len(batch) == 1 or sum(sizes[i] for i in batch) <= most for batch in batches):
            return [batch for batch in batches if batch]
        count += 1


def _padded_batches(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Indices by microbatch, each of samples of like length."""
    batches: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if batches and (len(batches[-1]) + 1) * sizes[batches[-1][0]] <= most:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _tries(
    samples: Sequence[Sample], chosen: Sequence[int], share_prompt: bool, microbatch_tokens: int
) -> list[tuple[Trie, list[int]]]:
    """Tries of a group and whose tokens they hold: one, or as few as fit; neighbours share most, so they stay together.

    What follows a sample's last trained token predicts nothing and is left out.
    """
    inputs = {i: samples[i].token_ids[: int(np.flatnonzero(samples[i].loss_mask)[-1])] for i in chosen}
    order = [chosen[k] for k in lexicographic([inputs[i] for i in chosen])] if share_prompt else list(chosen)
    bins: list[tuple[list[int], list[int]]] = []
    used = 0
    for i in order:
        shared = common_prefix(inputs[bins[-1][0][-1]], inputs[i]) if bins and share_prompt else 0
        if shared and used + len(inputs[i]) - shared <= microbatch_tokens:
            bins[-1][0].append(i)
            bins[-1][1].append(shared)
            used += len(inputs[i]) - shared
        else:
            bins.append(([i], [0]))
            used = len(inputs[i])
    return [(build_trie([inputs[i] for i in members], common), members) for members, common in bins]


def _make_row(
    samples: Sequence[Sample],
    advantages: npt.NDArray[np.float64],
    trie: Trie,
    members: Sequence[int],
    first: int,
    group: int,
    version: int,
) -> _Row:
    """What the tokens of a trie predict: a token that several samples share predicts the next one of each."""
    columns: list[tuple[np.ndarray, ...]] = []
    for places, i in sorted(zip(trie.places, members, strict=True), key=lambda pair: pair[1]):
        sample = samples[i]
        at = np.flatnonzero(sample.loss_mask)
        size = len(at)
        columns.append(
            (
                places[at - 1],
                sample.token_ids[at].astype(np.int64),
                np.full(size, first + i, dtype=np.int64),
                np.full(size, advantages[i], dtype=np.float32),
                sample.logprobs[at].astype(np.float32),
                np.full(size, sample.temperature, dtype=np.float32),
                version - sample.versions[at].astype(np.int64),
            )
        )
    sources, targets, sample_ids, advantage, logprobs, temperatures, lag = (
        np.concatenate(parts) for parts in zip(*columns, strict=True)
    )
    return _Row(
        trie=trie,
        sources=sources,
        targets=targets,
        sample=sample_ids,
        group=np.full(len(targets), group, dtype=np.int64),
        advantages=advantage,
        rollout_logprobs=logprobs,
        temperatures=temperatures,
        lag=lag,
    )


def _collate(rows: Sequence[_Row], weights: npt.NDArray[np.float32], mask: bool = True) -> PackedBatch:
    tokens = np.cumsum([0] + [len(row.trie.tokens) for row in rows])
    segments = np.cumsum([0] + [len(row.trie.lengths) for row in rows])

    def joined(parts: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts))

    def numbered(parts: Sequence[Index]) -> tuple[Index, torch.Tensor]:
        names, numbers = np.unique(np.concatenate(parts), return_inverse=True)
        return names, torch.from_numpy(numbers)

    members, sample = numbered([row.sample for row in rows])
    groups, group = numbered([row.group for row in rows])
    return PackedBatch(
        segments=Segments(
            starts=np.cumsum(np.concatenate([[0], *(row.trie.lengths for row in rows)])),
            parents=np.concatenate(
                [np.where(row.trie.parents < 0, -1, row.trie.parents + segments[i]) for i, row in enumerate(rows)]
            ),
        ),
        samples=len(members),
        groups=len(groups),
        members=members,
        input_ids=joined([row.trie.tokens for row in rows]),
        positions=joined([row.trie.positions for row in rows]),
        sources=joined([row.sources + tokens[i] for i, row in enumerate(rows)]),
        targets=joined([row.targets for row in rows]),
        sample=sample,
        group=group,
        mask=torch.full((len(weights),), mask),
        weights=torch.from_numpy(weights),
        advantages=joined([row.advantages for row in rows]),
        rollout_logprobs=joined([row.rollout_logprobs for row in rows]),
        temperatures=joined([row.temperatures for row in rows]),
        lag=joined([row.lag for row in rows]),
    )
