"""How per-token losses become the loss of the batch. A new aggregation: a file here, and its class in `AnyAggregation`."""

from typing import Annotated

from learner.aggregations.protocol import Aggregation, Totals
from learner.aggregations.seq_mean_token_mean import SeqMeanTokenMean
from moments_service.config import BY_NAME

AnyAggregation = Annotated[SeqMeanTokenMean, BY_NAME]
"""All kinds. From the second on: `Annotated[Annotated[A | B, Field(discriminator="kind")], BY_NAME]`."""

__all__ = ["Aggregation", "AnyAggregation", "SeqMeanTokenMean", "Totals"]
