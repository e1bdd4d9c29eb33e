"""What every low-rank adapter can be told."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from learner.patterns import Pattern
from moments_service.config import StrictModel


@dataclass(frozen=True, slots=True)
class Expert:
    """One low-rank pair of a layer: adds scale * B A to its weight."""

    name: str
    rank: int
    scale: float


class LowRank(StrictModel):
    """W + scale * B A on linear layers: A [rank, in] drawn at random, B [out, rank] zero at the start. W is frozen."""

    rank: int = Field(8, ge=1)
    """Rank of what is added to a layer's weight, of all experts together."""
    alpha: float = Field(16.0, gt=0)
    """What is added is scaled by alpha / rank."""
    targets: Pattern = ".*"
    """Regular expression: linear layers whose name matches it get an adapter; the output head never does."""

    publish: Literal["merged", "adapter"] = "merged"
    """What engines are sent: the policy with the adapter merged, or the adapter alone, megabytes that go beside the policy they loaded."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def orthogonal(self) -> bool:
        """Whether the rows of all A of a layer are orthogonal at the start."""
        return False

    @property
    def penalty(self) -> float:
        """Weight in the loss of what experts of a layer share."""
        return 0.0

    def experts(self) -> tuple[Expert, ...]:
        """Those of every layer; their ranks add up to `rank`."""
        return (Expert("default", self.rank, self.scale),)
