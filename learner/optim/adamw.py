"""AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from moments_service.config import StrictModel

if TYPE_CHECKING:
    import torch
    from torch import nn


class AdamW(StrictModel):
    """AdamW with gradient clipping."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""

    def build(self, parameters: Mapping[str, nn.Parameter]) -> tuple[torch.optim.Optimizer, ...]:
        """One fused AdamW over all of them."""
        from torch import optim

        chosen = list(parameters.values())
        return (optim.AdamW(chosen, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True),)
