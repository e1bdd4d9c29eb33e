"""Sum over tokens divided by a constant, then mean over samples and groups: Dr. GRPO."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from learner.aggregations.protocol import Totals
from learner.aggregations.seq_mean_token_sum import group_sizes
from moments_service.config import StrictModel


class SeqMeanTokenSumNorm(StrictModel):
    """Sum over a sample's tokens by a constant length, so that no answer is weighed by how long it is."""

    kind: Literal["seq_mean_token_sum_norm"] = "seq_mean_token_sum_norm"
    length: int = Field(ge=1)
    """Tokens that a sum counts as one mean; the longest completion (`sampling.max_tokens`), as in the paper."""

    def __call__(
        self, sample: npt.NDArray[np.int64], group: npt.NDArray[np.int64], totals: Totals
    ) -> npt.NDArray[np.float64]:
        """1 / (length * samples of the token's group * groups). Source: Dr. GRPO (arXiv 2503.20783)."""
        return 1.0 / (self.length * group_sizes(sample, group) * max(totals.groups, 1))
