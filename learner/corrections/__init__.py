"""Weights for tokens that another policy sampled. A new correction: a file here, and its class in `AnyCorrection`."""

from typing import Annotated

from learner.corrections.none import NoCorrection
from learner.corrections.protocol import Correction
from moments_service.config import BY_NAME

AnyCorrection = Annotated[NoCorrection, BY_NAME]
"""All kinds. From the second on: `Annotated[Annotated[A | B, Field(discriminator="kind")], BY_NAME]`."""

__all__ = ["AnyCorrection", "Correction", "NoCorrection"]
