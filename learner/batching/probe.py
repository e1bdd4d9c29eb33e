"""A share of a batch that stands for all of it: what the policy's move is measured on."""

from collections.abc import Sequence

import numpy as np

from learner.aggregations import Aggregation
from learner.batching.pack import ScoredSamples, count, pack
from learner.batching.packed import PackedBatch


def random_share(
    groups: Sequence[ScoredSamples],
    microbatches: int,
    aggregation: Aggregation,
    version: int,
    share_prompt: bool,
    microbatch_tokens: int,
    seed: int,
    padded: bool = False,
) -> PackedBatch | None:
    """One microbatch of groups drawn at random; None where there is nothing to train on.

    Microbatches as they are trained on would not do: the longest tries are dealt out first. microbatches:
    how many the groups fill.    The rest as of `pack`. A single group that does not fit is cut to its first microbatch.
    """
    order = np.random.default_rng(seed).permutation(len(groups))
    size = -(-len(groups) // max(microbatches, 1))
    while size:
        drawn = [groups[place] for place in order[:size]]
        batches = pack(drawn, aggregation, count(drawn), version, share_prompt, microbatch_tokens, padded)
        if len(batches) <= 1 or size == 1:
            return batches[0] if batches else None
        size = size * 3 // 4
    return None
