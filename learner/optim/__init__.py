"""How gradients become steps. A new optimiser or schedule: a file here, and its class in `AnyOptimizer` or `AnySchedule`.

Their options models import torch where they build something, not above: the configuration is read without torch.
"""

from typing import Annotated

from learner.optim.adamw import AdamW
from learner.optim.cosine import Cosine
from moments_service.config import BY_NAME

AnyOptimizer = Annotated[AdamW, BY_NAME]
AnySchedule = Annotated[Cosine, BY_NAME]
"""All kinds. From the second on: `Annotated[Annotated[A | B, Field(discriminator="kind")], BY_NAME]`."""

__all__ = ["AdamW", "AnyOptimizer", "AnySchedule", "Cosine"]
