"""From samples to microbatches: rows in which a group's common prefix stands once, weighted so that the loss is a plain sum."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from actors.rollout.sample import Sample
from learner.aggregations import Aggregation, Totals
from learner.batching.packed import Index, PackedBatch, Segments

ScoredSamples = tuple[tuple[Sample, ...], npt.NDArray[np.float64]]
"""The samples of one group, and the advantage of each: [G], NaN leaves a sample out."""


@dataclass(frozen=True, slots=True)
class _Row:
    """L input tokens that predict N: one trie. Arrays as in `PackedBatch`; `lengths` and `parents` [S] of its segments."""

    lengths: Index
    parents: Index
    tokens: Index
    positions: Index
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
) -> list[PackedBatch]:
    """Microbatches of one optimiser step on this rank; none where there is nothing to train on.

    totals: of the whole step, over all ranks.    version: of the policy that is trained.    share_prompt: whether a group's
    common untrained prefix stands once for all samples of a row.    microbatch_tokens: rows * longest row is no more, unless
    a single row is longer.
    """
    rows: list[_Row] = []
    first = 0
    for number, (samples, advantages) in enumerate(groups):
        for prefix, members in _bins(samples, trained(samples, advantages), share_prompt, microbatch_tokens):
            rows.append(_make_row(samples, advantages, prefix, members, first, number, version))
        first += len(samples)
    if not rows:
        return []
    sample, group = (np.concatenate(parts) for parts in zip(*((row.sample, row.group) for row in rows), strict=True))
    weights = aggregation(sample, group, totals).astype(np.float32)
    ends = np.cumsum([len(row.targets) for row in rows])
    weighted = list(zip(rows, np.split(weights, ends[:-1]), strict=True))
    batches: list[list[tuple[_Row, npt.NDArray[np.float32]]]] = []
    for row, row_weights in sorted(weighted, key=lambda pair: -len(pair[0].tokens)):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0][0].tokens) <= microbatch_tokens:
            batches[-1].append((row, row_weights))
        else:
            batches.append([(row, row_weights)])
    return [_collate([row for row, _ in batch], np.concatenate([w for _, w in batch])) for batch in batches]


def empty_batch() -> PackedBatch:
    """One token outside the mask: a rank that has run out of rows must still take part in every collective."""
    one, zero = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    row = _Row(one + 1, one - 1, one, one, one, one, one, one, zero, zero, zero + 1, one)
    return _collate([row], zero, mask=False)


def _bins(
    samples: Sequence[Sample], chosen: Sequence[int], share_prompt: bool, microbatch_tokens: int
) -> list[tuple[int, list[int]]]:
    """Rows of a group: (length of the prefix that stands once, indices of its samples). A row takes samples as long as it fits."""
    prefix = _common_prefix([samples[i] for i in chosen]) if share_prompt and chosen else 0
    bins: list[tuple[int, list[int]]] = []
    used = 0
    for i in chosen:
        trained_at = np.flatnonzero(samples[i].loss_mask)
        inputs = int(trained_at[-1]) - prefix
        if bins and prefix and used + inputs <= microbatch_tokens:
            bins[-1][1].append(i)
            used += inputs
        else:
            bins.append((prefix or int(trained_at[0]), [i]))
            used = prefix + inputs
    return bins


def _common_prefix(samples: Sequence[Sample]) -> int:
    """How many tokens at their start all samples share and none of them sampled."""
    length = min(int(sample.loss_mask.argmax()) for sample in samples)
    first = samples[0].token_ids[:length]
    for sample in samples[1:]:
        differs = np.flatnonzero(sample.token_ids[:length] != first[:length])
        length = int(differs[0]) if len(differs) else length
    return length


def _make_row(
    samples: Sequence[Sample],
    advantages: npt.NDArray[np.float64],
    prefix: int,
    members: Sequence[int],
    first: int,
    group: int,
    version: int,
) -> _Row:
    """A prefix and the samples below it. What follows a sample's last trained token predicts nothing and is left out."""
    tokens, positions = [samples[members[0]].token_ids[:prefix].astype(np.int64)], [np.arange(prefix)]
    columns: list[tuple[np.ndarray, ...]] = []
    used = prefix
    for i in members:
        sample = samples[i]
        at = np.flatnonzero(sample.loss_mask)
        last = int(at[-1])
        tokens.append(sample.token_ids[prefix:last].astype(np.int64))
        positions.append(np.arange(prefix, last))
        before = at - 1
        size = len(at)
        columns.append(
            (
                np.where(before < prefix, before, before - prefix + used),
                sample.token_ids[at].astype(np.int64),
                np.full(size, first + i, dtype=np.int64),
                np.full(size, advantages[i], dtype=np.float32),
                sample.logprobs[at].astype(np.float32),
                np.full(size, sample.temperature, dtype=np.float32),
                version - sample.versions[at].astype(np.int64),
            )
        )
        used += last - prefix
    sources, targets, sample_ids, advantage, logprobs, temperatures, lag = (
        np.concatenate(parts) for parts in zip(*columns, strict=True)
    )
    return _Row(
        lengths=np.array([len(part) for part in tokens], dtype=np.int64),
        parents=np.array([-1] + [0] * len(members), dtype=np.int64),
        tokens=np.concatenate(tokens),
        positions=np.concatenate(positions),
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
    tokens = np.cumsum([0] + [len(row.tokens) for row in rows])
    segments = np.cumsum([0] + [len(row.lengths) for row in rows])

    def joined(parts: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts))

    def numbered(parts: Sequence[Index]) -> tuple[int, torch.Tensor]:
        names, numbers = np.unique(np.concatenate(parts), return_inverse=True)
        return len(names), torch.from_numpy(numbers)

    samples, sample = numbered([row.sample for row in rows])
    groups, group = numbered([row.group for row in rows])
    return PackedBatch(
        segments=Segments(
            starts=np.cumsum(np.concatenate([[0], *(row.lengths for row in rows)])),
            parents=np.concatenate(
                [np.where(row.parents < 0, -1, row.parents + segments[i]) for i, row in enumerate(rows)]
            ),
            rows=np.repeat(np.arange(len(rows)), [len(row.lengths) for row in rows]),
        ),
        samples=samples,
        groups=groups,
        input_ids=joined([row.tokens for row in rows]),
        positions=joined([row.positions for row in rows]),
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
