"""Mean over tokens, then samples, then groups: GRPO and BV-Blend."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from learner.aggregations.protocol import Totals
from moments_service.config import StrictModel


class SeqMeanTokenMean(StrictModel):
    """Mean over a sample's tokens, then over a group's samples, then over groups, so that long answers weigh no more."""

    kind: Literal["seq_mean_token_mean"] = "seq_mean_token_mean"

    def __call__(
        self, sample: npt.NDArray[np.int64], group: npt.NDArray[np.int64], totals: Totals
    ) -> npt.NDArray[np.float64]:
        """1 / (tokens of the sample * samples of its group * groups). Source: BV-Blend (arXiv 2606.28707), Eq. 13."""
        _, first, of, lengths = np.unique(sample, return_index=True, return_inverse=True, return_counts=True)
        _, group_of, sizes = np.unique(group[first], return_inverse=True, return_counts=True)
        each = 1.0 / (sizes[group_of] * totals.groups)
        return each[of] / lengths[of]
