"""Tokens that are left out of any loss, or held back in it. A new mask: a file here, and its class in `MaskKind`."""

from typing import Annotated

from pydantic import Field

from learner.masks.capo import Capo
from learner.masks.clip_cov import ClipCov
from learner.masks.kl_cov import KlCov
from learner.masks.opsm import Opsm
from learner.masks.protocol import STATISTICS, Mask, Masked
from moments_service.config import BY_NAME

MaskKind = ClipCov | KlCov | Opsm | Capo
AnyMask = Annotated[Annotated[MaskKind, Field(discriminator="kind")], BY_NAME]
"""All kinds."""

__all__ = ["STATISTICS", "AnyMask", "Capo", "Mask", "MaskKind", "Masked"]
