"""Sum over tokens, then mean over samples and groups."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from learner.aggregations.protocol import Totals
from moments_service.config import StrictModel


class SeqMeanTokenSum(StrictModel):
    """Sum over a sample's tokens, then mean over a group's samples and over groups: the log-prob of an answer as a whole."""

    kind: Literal["seq_mean_token_sum"] = "seq_mean_token_sum"

    def __call__(
        self, sample: npt.NDArray[np.int64], group: npt.NDArray[np.int64], totals: Totals
    ) -> npt.NDArray[np.float64]:
        """1 / (samples of the token's group * groups). Source: RLOO (arXiv 2402.14740)."""
        return 1.0 / (group_sizes(sample, group) * max(totals.groups, 1))


def group_sizes(sample: npt.NDArray[np.int64], group: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[N] how many samples the token's group has; `sample` and `group` as in `Aggregation`."""
    _, first = np.unique(sample, return_index=True)
    groups, sizes = np.unique(group[first], return_counts=True)
    return sizes[np.searchsorted(groups, group)]
