"""Mean over all tokens of a group, then over groups: ScaleRL."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from learner.aggregations.protocol import Totals
from moments_service.config import StrictModel


class PromptMean(StrictModel):
    """Mean over all tokens of a group, then over groups: long answers weigh more, long groups do not."""

    kind: Literal["prompt_mean"] = "prompt_mean"

    def __call__(
        self, sample: npt.NDArray[np.int64], group: npt.NDArray[np.int64], totals: Totals
    ) -> npt.NDArray[np.float64]:
        """1 / (tokens of the token's group * groups). Source: ScaleRL (arXiv 2510.13786), "prompt average"."""
        _, of, tokens = np.unique(group, return_inverse=True, return_counts=True)
        return 1.0 / (tokens[of] * max(totals.groups, 1))
