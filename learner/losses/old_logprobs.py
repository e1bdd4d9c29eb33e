"""Which policy the ratios of a loss start at, so what it is held near and what its clips are around."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from moments_service.config import BY_NAME, StrictModel

if TYPE_CHECKING:
    import torch


class Recompute(StrictModel):
    """The policy before the first update on a batch: one pass more, and none where there is one update."""

    kind: Literal["recompute"] = "recompute"


class Rollout(StrictModel):
    """The sampler, by the log-probs that it gave: the ratio holds everything, so that no correction goes with it."""

    kind: Literal["rollout"] = "rollout"


class Interpolate(StrictModel):
    """Between the sampler and the policy of now, by a token's age; no pass more."""

    kind: Literal["interpolate"] = "interpolate"


class Average(StrictModel):
    """A moving average of the policy (PPO-EWMA): one pass and one more set of what is trained."""

    kind: Literal["average"] = "average"
    decay: float = Field(0.9, gt=0, lt=1)
    """Share of itself that the average keeps at each update: 1 / (1 - decay) updates are its memory."""


AnyOld = Annotated[Annotated[Recompute | Rollout | Interpolate | Average, Field(discriminator="kind")], BY_NAME]
"""All kinds. Average: arXiv 2110.00641, section 3, with the start in the place of its correction for a short past."""


def interpolated(now: torch.Tensor, rollout: torch.Tensor, lag: torch.Tensor) -> torch.Tensor:
    """[N] log-linear between the sampler's log-probs and those of now: about what the policy one version ago would say.

    A token that is d versions old has (d - 1) / d of now and 1 / d of the sampler; one of this version is taken as it is now.
    Source: A-3PO (arXiv 2512.06547), with AReaL's coefficients.
    """
    share = 1.0 / lag.clamp(min=1).to(now.dtype)
    return now.lerp(rollout, share.where(lag > 0, 0.0))
