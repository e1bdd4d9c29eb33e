"""From groups to microbatches: rows of a prompt with its completions, weighted so that the loss is a plain sum."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from actors.rollout.payload import GroupPayload

PAD_SEGMENT = -1


@dataclass(frozen=True, slots=True)
class TrainGroup:
    """The tokens of one group and one advantage per completion; None leaves the completion out."""

    payload: GroupPayload
    advantages: tuple[float | None, ...]

    def __post_init__(self) -> None:
        name, completions = self.payload.group_id, self.payload.completions
        if not len(completions) == len(self.payload.logprobs) == len(self.advantages):
            raise ValueError(
                f"group {name}: {len(completions)} completions, {len(self.payload.logprobs)} arrays of log-probs and "
                f"{len(self.advantages)} advantages; they must be as many"
            )
        for i, (tokens, logprobs) in enumerate(zip(completions, self.payload.logprobs, strict=True)):
            if len(tokens) != len(logprobs):
                raise ValueError(f"group {name}: completion {i} has {len(tokens)} tokens, {len(logprobs)} log-probs")
        if len(self.payload.prompt_ids) == 0:
            raise ValueError(f"group {name}: the prompt has no tokens, so nothing predicts the first completion token")
        if not self.payload.temperature > 0:
            raise ValueError(f"group {name}: sampled at temperature {self.payload.temperature}; training needs > 0")
        if any(advantage is not None and not np.isfinite(advantage) for advantage in self.advantages):
            raise ValueError(f"group {name}: advantages {self.advantages} are not all finite")

    @property
    def trained(self) -> list[int]:
        """Indices of the completions that have an advantage and at least one token."""
        return [i for i, a in enumerate(self.advantages) if a is not None and len(self.payload.completions[i])]


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence of L input tokens that predicts N target tokens.

    tokens, positions, segments: [L] int64; segment 0 is the prompt, i > 0 the i-th completion in the row.
    sources: [N] int64, index into the row of the token whose hidden state predicts the target.    targets: [N] int64.
    advantages, weights, rollout_logprobs: [N] float32.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: NDArray[np.int64]
    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    advantages: NDArray[np.float32]
    weights: NDArray[np.float32]
    rollout_logprobs: NDArray[np.float32]
    temperature: float


@dataclass(frozen=True, slots=True)
class Microbatch:
    """B rows padded to L tokens, and the N completion tokens that they predict.

    input_ids, position_ids: [B, L] int64.    segments: [B, L] int64, `PAD_SEGMENT` on padding; None where every row is
    one plain causal sequence.    sources: [N] int64 into the flattened [B * L].    targets: [N] int64.
    advantages, weights, rollout_logprobs, temperatures: [N] float32; weight 0 marks a token that only keeps ranks in step.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segments: torch.Tensor | None
    sources: torch.Tensor
    targets: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor
    rollout_logprobs: torch.Tensor
    temperatures: torch.Tensor

    def to(self, device: torch.device) -> "Microbatch":
        """The same microbatch on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


def attention_mask(segments: torch.Tensor) -> torch.Tensor:
    """Which token sees which: causal, within the own segment and the prompt.

    segments: [B, L]. Returns [B, 1, L, L] bool, True where the query (third axis) sees the key (fourth axis). Padding
    sees the prompt and itself, so that no row of the softmax is empty.
    """
    query, key = segments[:, :, None], segments[:, None, :]
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return (((key == 0) | (key == query)) & causal)[:, None]


def make_rows(group: TrainGroup, prompts: int, share_prompt: bool, microbatch_tokens: int) -> list[Row]:
    """Rows of one group; a row takes completions as long as it fits into `microbatch_tokens`.

    prompts: number of groups with a trained completion in the whole update, over all ranks. A token of completion i
    weighs 1 / (len_i * trained completions of the group * prompts): mean over tokens, completions, prompts.
    The last token of a completion is only a target: nothing is predicted from it.
    """
    trained = group.trained
    if not trained:
        return []
    bins: list[list[int]] = []
    used = 0
    for i in trained:
        inputs = len(group.payload.completions[i]) - 1
        if bins and share_prompt and used + inputs <= microbatch_tokens:
            bins[-1].append(i)
            used += inputs
        else:
            bins.append([i])
            used = len(group.payload.prompt_ids) + inputs
    return [_make_row(group, chosen, 1.0 / (len(trained) * prompts)) for chosen in bins]


def _make_row(group: TrainGroup, chosen: Sequence[int], completion_weight: float) -> Row:
    prompt = np.asarray(group.payload.prompt_ids, dtype=np.int64)
    tokens, positions, segments = [prompt], [np.arange(len(prompt))], [np.zeros(len(prompt), dtype=np.int64)]
    sources, targets, advantages, weights = [], [], [], []
    used = len(prompt)
    for segment, i in enumerate(chosen, start=1):
        completion = np.asarray(group.payload.completions[i], dtype=np.int64)
        length = len(completion)
        tokens.append(completion[:-1])
        positions.append(len(prompt) + np.arange(length - 1))
        segments.append(np.full(length - 1, segment, dtype=np.int64))
        sources.append(np.concatenate([[len(prompt) - 1], used + np.arange(length - 1)]))
        targets.append(completion)
        advantages.append(np.full(length, group.advantages[i], dtype=np.float32))
        weights.append(np.full(length, completion_weight / length, dtype=np.float32))
        used += length - 1
    return Row(
        tokens=np.concatenate(tokens),
        positions=np.concatenate(positions),
        segments=np.concatenate(segments),
        sources=np.concatenate(sources),
        targets=np.concatenate(targets),
        advantages=np.concatenate(advantages),
        weights=np.concatenate(weights),
        rollout_logprobs=np.concatenate([group.payload.logprobs[i] for i in chosen]).astype(np.float32),
        temperature=group.payload.temperature,
    )


def pack_rows(rows: Sequence[Row], microbatch_tokens: int, share_prompt: bool) -> list[Microbatch]:
    """Rows of similar length padded together; rows * longest <= `microbatch_tokens` unless a single row is longer."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].tokens) <= microbatch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return [_collate(batch, share_prompt) for batch in batches]


def _collate(rows: Sequence[Row], share_prompt: bool) -> Microbatch:
    length = max(len(row.tokens) for row in rows)
    shape = (len(rows), length)
    # Plain rows count on through their padding: positions that restart would be read as packed sequences.
    input_ids, segments = np.zeros(shape, dtype=np.int64), np.full(shape, PAD_SEGMENT, dtype=np.int64)
    position_ids = np.broadcast_to(np.arange(length), shape).copy()
    for i, row in enumerate(rows):
        input_ids[i, : len(row.tokens)] = row.tokens
        position_ids[i, : len(row.tokens)] = row.positions
        segments[i, : len(row.tokens)] = row.segments
    temperatures = [np.full(len(row.targets), row.temperature, dtype=np.float32) for row in rows]
    return Microbatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        segments=torch.from_numpy(segments) if share_prompt else None,
        sources=torch.from_numpy(np.concatenate([row.sources + i * length for i, row in enumerate(rows)])),
        targets=torch.from_numpy(np.concatenate([row.targets for row in rows])),
        advantages=torch.from_numpy(np.concatenate([row.advantages for row in rows])),
        weights=torch.from_numpy(np.concatenate([row.weights for row in rows])),
        rollout_logprobs=torch.from_numpy(np.concatenate([row.rollout_logprobs for row in rows])),
        temperatures=torch.from_numpy(np.concatenate(temperatures)),
    )


def empty_microbatch(share_prompt: bool) -> Microbatch:
    """One token of weight 0: a rank that has run out of rows must still take part in every collective."""
    one = np.zeros(1, dtype=np.int64)
    zero = np.zeros(1, dtype=np.float32)
    return _collate([Row(one, one, one, one, one, zero, zero, zero, 1.0)], share_prompt)
