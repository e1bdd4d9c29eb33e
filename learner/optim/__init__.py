"""How gradients become steps. A new optimiser: a file here, and its class in `AnyOptimizer`; schedules have a room of their own.

Their options models import torch where they build something, not above: the configuration is read without torch.
"""

from typing import Annotated

from pydantic import Field

from learner.optim.adamw import AdamW
from learner.optim.muon import Muon
from learner.optim.options import GroupConfig
from learner.optim.schedules import AnySchedule, Constant, Cosine, Linear, Wsd
from moments_service.strict import by_name

AnyOptimizer = Annotated[Annotated[AdamW | Muon, Field(discriminator="kind")], by_name("adamw")]

__all__ = ["AdamW", "AnyOptimizer", "AnySchedule", "Constant", "Cosine", "GroupConfig", "Linear", "Muon", "Wsd"]
