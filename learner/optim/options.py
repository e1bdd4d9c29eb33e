"""What every optimiser can be told."""

from pydantic import Field

from learner.patterns import Pattern
from moments_service.config import StrictModel


class GroupConfig(StrictModel):
    """A peak learning rate of their own for some parameters."""

    match: Pattern
    """Regular expression: trained parameters whose name matches it; of several entries the first that matches counts."""
    lr: float = Field(gt=0)
    """Their peak learning rate."""


class OptimizerConfig(StrictModel):
    """Peak rate, decay and clipping; weights of one dimension (norms) and biases are never decayed."""

    lr: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices; norms and biases have none."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    groups: tuple[GroupConfig, ...] = ()
    """Parameters with a learning rate of their own."""
