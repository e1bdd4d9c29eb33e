"""What an optimiser's and a schedule's options can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from learner.optim.options import GroupConfig

if TYPE_CHECKING:
    import torch

    from learner.optim.parameter_groups import ParameterGroup


class OptimizerOptions(Protocol):
    """Builds torch optimisers, whose state holds tensors only."""

    @property
    def lr(self) -> float: ...

    @property
    def max_grad_norm(self) -> float: ...

    @property
    def groups(self) -> tuple[GroupConfig, ...]: ...

    def build(self, groups: Sequence[ParameterGroup]) -> tuple[torch.optim.Optimizer, ...]:
        """groups: of all parameters that are trained, with their peak rates; each must be in one optimiser."""
        ...


class Schedule(Protocol):
    """A learning rate over time."""

    def share(self, updates: int, total: int) -> float:
        """Share of the peak learning rate after `updates` optimiser steps of `total`."""
        ...
