"""What a policy loss is: a pure function of per-token arrays and the numbers of their samples and groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

Need = Literal["old", "reference", "entropy", "head_move"]
"""What must be there.

old: log-probs before the first update on a batch.    reference: those of the reference policy.    entropy: with its gradient.
head_move: what the next step of the output head would do.
"""

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are cut off at +- this many nats, so that no token overflows."""


@dataclass(frozen=True, slots=True)
class LossInputs:
    """N predicted tokens of one microbatch, whose samples are whole. Only `logprobs` and `entropy` may carry a gradient."""

    logprobs: torch.Tensor
    """[N] nats, of the policy that is trained."""
    entropy: torch.Tensor
    """[N] nats; carries a gradient only where it is needed."""
    old: torch.Tensor
    """[N]; those of now where nobody needs older ones."""
    reference: torch.Tensor | None
    """[N]; None where nobody needs it."""
    rollout: torch.Tensor
    """[N], of the engine that sampled the token."""
    advantages: torch.Tensor
    """[N]"""
    mask: torch.Tensor
    """[N] bool; tokens outside it have weight 0."""
    lag: torch.Tensor
    """[N] policy versions between sampling and training."""
    sample: torch.Tensor
    """[N] in [0, samples)."""
    group: torch.Tensor
    """[N] in [0, groups)."""
    samples: int
    groups: int
    head_move: torch.Tensor | None = None
    """[2, N], see `learner.model.head_move`; None where nobody needs it, and before the first step."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Named values [N] per token. Tokens outside the mask do not count. The names must not depend on the values."""

    means: dict[str, torch.Tensor] = field(default_factory=dict)
    """Reported as means over all tokens of the batch."""
    maxima: dict[str, torch.Tensor] = field(default_factory=dict)
    """Reported as the largest of the batch; >= 0."""


class Loss(Protocol):
    """Per-token policy loss."""

    @property
    def needs(self) -> frozenset[Need]: ...

    def __call__(self, inputs: LossInputs) -> tuple[torch.Tensor, Measured]:
        """([N] losses, what it measured)."""
        ...


def log_ratio(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """[N] log(new / old), limited to +- LOG_RATIO_LIMIT."""
    return (new - old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
