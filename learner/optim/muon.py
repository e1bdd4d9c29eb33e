"""Muon for matrices, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from learner.optim.adamw import AdamW
from learner.optim.options import OptimizerConfig

if TYPE_CHECKING:
    import torch

    from learner.optim.parameter_groups import ParameterGroup


class Muon(OptimizerConfig):
    """Muon with gradient clipping: steps of matrices are orthogonalised; embeddings, head, norms and biases take AdamW's.

    `lr` is on AdamW's scale for both: an orthogonal step is scaled to the root mean square that one of AdamW's has (arXiv 2502.16982).
    """

    kind: Literal["muon"] = "muon"
    momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's decay rate; the step is Nesterov's."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates, for what is no matrix."""

    def build(self, groups: Sequence[ParameterGroup]) -> tuple[torch.optim.Optimizer, ...]:
        """Muon over the hidden matrices and a fused AdamW over the others; either is left out where it has none."""
        from learner.optim.orthogonal import OrthogonalMomentum

        hidden = [group.options(self.weight_decay) for group in groups if group.hidden]
        others = [group for group in groups if not group.hidden]
        muon = (OrthogonalMomentum(hidden, self.momentum),) if hidden else ()
        adamw = AdamW(betas=self.betas, weight_decay=self.weight_decay).build(others) if others else ()
        return (*muon, *adamw)
