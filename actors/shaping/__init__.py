"""Shaping rules: what the learner optimises beside the verifier's reward. A new one: a file here, and its class in `ShapingKind`."""

from typing import Annotated

from pydantic import Field

from actors.shaping.alp import Alp
from actors.shaping.drpo import Drpo
from actors.shaping.grpo_lambda import GrpoLambda
from actors.shaping.hapo import HapoOptions
from actors.shaping.hard_truncation import HardTruncation
from actors.shaping.kimi import Kimi
from actors.shaping.laser_d import LaserDOptions
from actors.shaping.soft_overlong import SoftOverlong
from moments_service.config import BY_NAME

ShapingKind = SoftOverlong | HardTruncation | Kimi | Alp | GrpoLambda | HapoOptions | LaserDOptions | Drpo
AnyShaping = Annotated[Annotated[ShapingKind, Field(discriminator="kind")], BY_NAME]
"""All kinds."""

__all__ = ["AnyShaping", "ShapingKind"]
