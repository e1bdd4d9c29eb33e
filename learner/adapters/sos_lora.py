"""Static orthogonal subspace LoRA. Reconstructed from a summary: not the paper's own formulas where they differ."""

from typing import Literal, Self

from pydantic import Field, model_validator

from learner.adapters.options import Expert, LowRank


class SosLora(LowRank):
    """Static orthogonal subspace LoRA (reconstructed): W + sum over experts of scale_k * B_k A_k, all experts always on.

    The total rank is split over the experts; scale_k = alpha / rank * scale_ratio^k is fixed; the rows of all A of a layer start
    orthogonal, and `overlap` * sum over pairs of |A_i A_j^T|^2 in the loss keeps the experts' subspaces apart.
    """

    kind: Literal["sos_lora"] = "sos_lora"
    experts_count: int = Field(4, ge=2)
    """Experts of a layer; none has a rank below 1."""
    scale_ratio: float = Field(0.5, gt=0, le=1)
    """Scale of each expert as a share of the one before."""
    overlap: float = Field(0.01, ge=0)
    """Weight in the loss of the squared overlap between experts, summed over layers."""

    @property
    def orthogonal(self) -> bool:
        return True

    @property
    def penalty(self) -> float:
        return self.overlap

    def experts(self) -> tuple[Expert, ...]:
        each, more = divmod(self.rank, self.experts_count)
        return tuple(
            Expert(f"expert_{k}", each + (k < more), self.scale * self.scale_ratio**k)
            for k in range(self.experts_count)
        )

    @model_validator(mode="after")
    def _every_expert_has_a_rank(self) -> Self:
        if self.rank < self.experts_count:
            raise ValueError(
                f"rank = {self.rank} cannot be split over experts_count = {self.experts_count}; raise rank"
            )
        return self
