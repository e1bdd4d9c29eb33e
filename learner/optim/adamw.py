"""AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from learner.optim.options import OptimizerConfig

if TYPE_CHECKING:
    import torch

    from learner.optim.parameter_groups import ParameterGroup


class AdamW(OptimizerConfig):
    """AdamW with gradient clipping."""

    kind: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""

    def build(self, groups: Sequence[ParameterGroup]) -> tuple[torch.optim.Optimizer, ...]:
        """One fused AdamW over all of them."""
        from torch import optim

        return (optim.AdamW([group.options(self.weight_decay) for group in groups], betas=self.betas, fused=True),)
