"""Weights for tokens that another policy sampled. A new correction: a file here, and its class in `CorrectionKind`."""

from typing import Annotated

from pydantic import Field

from learner.corrections.decoupled_ppo import DecoupledPpo
from learner.corrections.icepop import IcePop
from learner.corrections.mis import MaskedImportance
from learner.corrections.none import NoCorrection
from learner.corrections.protocol import Correction
from learner.corrections.tis import TruncatedImportance
from moments_service.config import BY_NAME

CorrectionKind = NoCorrection | TruncatedImportance | MaskedImportance | IcePop | DecoupledPpo
AnyCorrection = Annotated[Annotated[CorrectionKind, Field(discriminator="kind")], BY_NAME]
"""All kinds."""

__all__ = ["AnyCorrection", "Correction", "CorrectionKind", "NoCorrection"]
