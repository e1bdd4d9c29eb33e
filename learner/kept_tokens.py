"""From microbatches back to samples: the values of every token, of groups that are kept for people to read."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from learner.batching.pack import ScoredSamples, trained
from learner.batching.packed import PackedBatch
from learner.token_values import Floats, TokenValues


def values_of(
    groups: Sequence[ScoredSamples],
    plan: Sequence[PackedBatch],
    logprobs: Sequence[torch.Tensor],
    advantages: Sequence[torch.Tensor],
) -> list[TokenValues]:
    """Of each sample with an advantage, by group and index. plan: microbatches of `groups`.    logprobs, advantages: [N] of each."""
    samples = [sample for members, _ in groups for sample in members]
    found: dict[int, TokenValues] = {}
    for batch, logprob, advantage in zip(plan, logprobs, advantages, strict=True):
        if not bool(batch.mask.all()):  # it only kept ranks in step
            continue
        rows, logprob, advantage = batch.sample.cpu().numpy(), logprob.cpu().float(), advantage.cpu().float()
        for place, member in enumerate(batch.members.tolist()):
            here = rows == place
            sample = samples[member]
            at = np.flatnonzero(sample.loss_mask)
            kept = slice(at[0], at[-1] + 1)
            found[member] = TokenValues(
                sample.group_id,
                sample.index,
                sample.token_ids[kept].astype(np.int32),
                *(
                    _spread(values, at)
                    for values in (sample.logprobs[at], logprob.numpy()[here], advantage.numpy()[here])
                ),
            )
    chosen, first = [], 0
    for members, given in groups:
        chosen += [first + i for i in trained(members, given)]
        first += len(members)
    return [found[member] for member in chosen]


def _spread(values: Floats, at: npt.NDArray[np.int64]) -> Floats:
    """Values of the tokens at these places, with NaN between them."""
    spread = np.full(at[-1] - at[0] + 1, np.nan, dtype=np.float32)
    spread[at - at[0]] = values
    return spread
