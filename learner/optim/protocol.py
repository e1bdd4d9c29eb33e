"""What an optimiser's and a schedule's options can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn


class OptimizerOptions(Protocol):
    """Builds torch optimisers, whose state holds tensors only."""

    @property
    def max_grad_norm(self) -> float: ...

    def build(self, parameters: Mapping[str, nn.Parameter]) -> tuple[torch.optim.Optimizer, ...]:
        """parameters: those that are trained, by name; each must be in one optimiser. Their groups hold the peak rates."""
        ...


class Schedule(Protocol):
    """A learning rate over time."""

    def share(self, updates: int, total: int) -> float:
        """Share of the peak learning rate after `updates` optimiser steps of `total`."""
        ...
