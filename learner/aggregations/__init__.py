"""How per-token losses become the loss of the batch. A new aggregation: a file here, and its class in `AnyAggregation`."""

from typing import Annotated

from pydantic import Field

from learner.aggregations.prompt_mean import PromptMean
from learner.aggregations.protocol import Aggregation, Totals
from learner.aggregations.seq_mean_token_mean import SeqMeanTokenMean
from learner.aggregations.seq_mean_token_sum import SeqMeanTokenSum
from learner.aggregations.seq_mean_token_sum_norm import SeqMeanTokenSumNorm
from learner.aggregations.token_mean import TokenMean
from moments_service.config import BY_NAME

AggregationKind = SeqMeanTokenMean | TokenMean | SeqMeanTokenSum | SeqMeanTokenSumNorm | PromptMean
AnyAggregation = Annotated[Annotated[AggregationKind, Field(discriminator="kind")], BY_NAME]
"""All kinds."""

__all__ = ["Aggregation", "AggregationKind", "AnyAggregation", "SeqMeanTokenMean", "Totals"]
