"""Mean over all trained tokens of the batch: DAPO and CISPO."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from learner.aggregations.protocol import Totals
from moments_service.config import StrictModel


class TokenMean(StrictModel):
    """Mean over all tokens of the batch, so that long answers weigh more."""

    kind: Literal["token_mean"] = "token_mean"

    def __call__(
        self, sample: npt.NDArray[np.int64], group: npt.NDArray[np.int64], totals: Totals
    ) -> npt.NDArray[np.float64]:
        """1 / (tokens of all ranks and microbatches). Source: DAPO (arXiv 2503.14476), Eq. 12."""
        return np.full(len(sample), 1.0 / max(totals.tokens, 1))
