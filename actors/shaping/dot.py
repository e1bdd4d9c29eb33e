"""DOT: where a whole group is right, what runs on far beyond the others is cut off, and judged again as it then is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from actors.rollout.sample import Sample
from actors.shaping.protocol import Rule, Shaped, ShapingBatch, ShapingOptions
from moments_service.messages.groups import FULL_REWARD


class Dot(ShapingOptions):
    """Learns from outliers as they are up to the cut. What was said is judged and remembered whole, as ever."""

    kind: Literal["dot"] = "dot"
    deviations: float = Field(3.0, gt=0)
    """A completion is cut at the mean length of its group and so many standard deviations."""
    least_cut: int = Field(32, ge=1)
    """Completions that are fewer tokens longer than that stay whole."""

    def create(self) -> Rule:
        return self

    @property
    def smallest_group(self) -> int:
        """Groups must be as large for one completion to lie so far out: of n numbers none is further than sqrt(n - 1) deviations from
        their mean.
        """
        return int(self.deviations**2 + 1) + 1

    def cuts(self, lengths: Sequence[int], rewards: Sequence[float | None]) -> dict[int, int]:
        """Of the completions that are outliers, by place: how many tokens they keep. None unless all of a group are right.

        Source: DOT (arXiv 2601.03969): T = floor(mean L + 3 std L), cut where L - T >= 32.
        """
        if not all(reward is not None and reward >= FULL_REWARD for reward in rewards):
            return {}
        limit = int(np.floor(np.mean(lengths) + self.deviations * np.std(lengths)))
        return {place: limit for place, length in enumerate(lengths) if length - limit >= self.least_cut}

    def __call__(self, batch: ShapingBatch) -> Shaped:
        """r' = the reward of the completion as it was cut; r where it was not, or could not be judged again."""
        again = batch.observed[self.kind]
        cut = ~np.isnan(again) & batch.scored
        share = float(cut.sum() / max(batch.scored.sum(), 1))
        return Shaped(np.where(cut, again, batch.rewards), metrics={"cut": share})


def cut(sample: Sample, tokens: int) -> Sample:
    """A sample of one turn with the first `tokens` that the policy sampled."""
    end = int(np.flatnonzero(sample.loss_mask)[0]) + tokens
    return replace(
        sample,
        token_ids=sample.token_ids[:end],
        loss_mask=sample.loss_mask[:end],
        logprobs=sample.logprobs[:end],
        versions=sample.versions[:end],
        truncated=True,
    )
