"""CAPO's curvature mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from learner.losses.protocol import LossInputs, Measured, Need
from learner.masks.protocol import Mask, Masked

if TYPE_CHECKING:
    import torch


class Capo(Mask):
    """Leaves out tokens that the next step of the output head would move too far. The head must be trained, by AdamW."""

    kind: Literal["capo"] = "capo"
    fisher: float = Field(1e-4, gt=0)
    """Largest m_F of a token that is kept: the square of the change of its log-prob, in nats."""
    hessian: float = Field(1e-2, gt=0)
    """Largest |m_H| of a token that is kept: the change of its ratio times its advantage, to second order."""
    needs: ClassVar[frozenset[Need]] = frozenset({"head_move"})

    def __call__(self, inputs: LossInputs, statistics: torch.Tensor) -> Masked:
        """1 where m_F < fisher and |m_H| < hessian, else 0; with v = e_target - pi and u = (modelled step) h:

        m_F = (v.u)^2,    m_H = A * (v.u) + A / 2 * ((v.u)^2 - u^T (diag(pi) - pi pi^T) u).

        The modelled step is AdamW's, of the head's weight, from the moments that it has of the gradients so far; before the first
        of them nothing is left out. Measures means and maxima of m_F and |m_H|, and the share that was left out. Source: CAPO
        (arXiv 2510.00819); how the step is modelled is reconstructed, thresholds are the paper's for GRPO.
        """
        moved = inputs.head_move
        first, variance = (inputs.advantages.new_zeros(inputs.advantages.shape),) * 2 if moved is None else moved
        square = first.square()
        change = (inputs.advantages * (first + (square - variance) / 2.0)).abs()
        out = (square >= self.fisher) | (change >= self.hessian)
        measured = Measured(
            means={"capo_fisher": square, "capo_hessian": change, "capo_share": out.float()},
            maxima={"capo_fisher_max": square, "capo_hessian_max": change},
        )
        return Masked((~out).to(inputs.logprobs.dtype), measured)
