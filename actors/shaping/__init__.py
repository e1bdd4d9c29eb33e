"""Shaping rules: what the learner optimises beside the verifier's reward. A new one: a file here, and its class in `ShapingKind`."""

from typing import Annotated

from actors.shaping.soft_overlong import SoftOverlong
from moments_service.config import BY_NAME

ShapingKind = SoftOverlong
AnyShaping = Annotated[ShapingKind, BY_NAME]
"""All kinds."""

__all__ = ["AnyShaping", "ShapingKind"]
