"""Shaping rules: what the learner optimises beside the verifier's reward. A new one: a file here, and its class in `ShapingKind`."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from actors.shaping.alp import Alp
from actors.shaping.arlcp import Arlcp
from actors.shaping.budget_curriculum import BudgetCurriculum
from actors.shaping.dot import Dot
from actors.shaping.drpo import Drpo
from actors.shaping.format_length import FormatLength
from actors.shaping.grpo_lambda import GrpoLambda
from actors.shaping.hapo import HapoOptions
from actors.shaping.hard_truncation import HardTruncation
from actors.shaping.kimi import Kimi
from actors.shaping.l1 import L1
from actors.shaping.laser_d import LaserDOptions
from actors.shaping.soft_overlong import SoftOverlong
from actors.shaping.unlikeliness import Unlikeliness
from moments_service.config import BY_NAME

ShapingKind = (
    SoftOverlong
    | HardTruncation
    | L1
    | Kimi
    | Alp
    | GrpoLambda
    | HapoOptions
    | LaserDOptions
    | Dot
    | Arlcp
    | Unlikeliness
    | FormatLength
    | BudgetCurriculum
    | Drpo
)
AnyShaping = Annotated[Annotated[ShapingKind, Field(discriminator="kind")], BY_NAME]
"""All kinds."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


Rules = Annotated[tuple[AnyShaping, ...], BeforeValidator(_listed)]
"""What a recipe says of shaping: a list of rules, or a single one."""

__all__ = ["AnyShaping", "Rules", "ShapingKind"]
