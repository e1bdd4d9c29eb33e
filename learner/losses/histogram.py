"""Quantiles that add up over microbatches and ranks: counts in fixed bins of a ratio's log."""

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch

_SIDE = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 20.0)
EDGES = (*(-edge for edge in reversed(_SIDE)), *_SIDE)
"""Nats; the outermost are the limits of every log-ratio."""
QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}


def bins(name: str, log_ratio: torch.Tensor) -> dict[str, torch.Tensor]:
    """By a name for each bin, [N]: 1 where the token lies in it, else 0.    log_ratio: [N], within the outermost edges."""
    inner = edges_like(EDGES[1:-1], log_ratio)
    numbers = torch.arange(len(EDGES) - 1, device=log_ratio.device)
    rows = (torch.bucketize(log_ratio, inner)[None] == numbers[:, None]).to(log_ratio.dtype)
    return dict(zip(_names(name), rows, strict=True))


def edges_like(edges: tuple[float, ...], values: torch.Tensor) -> torch.Tensor:
    """The edges of bins as a tensor like `values`: made once, since a GPU waits for what the host sends it unpinned."""
    return _edges(edges, values.device, values.dtype)


@cache
def _edges(edges: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(edges, device=device, dtype=dtype)


def quantiles(name: str, shares: Mapping[str, float]) -> dict[str, float]:
    """Quantiles of the ratio from the shares of its bins: exact to a bin, in it as if its logs were spread evenly."""
    reached = np.cumsum([0.0, *(shares[bin_name] for bin_name in _names(name))])
    if reached[-1] <= 0.0:
        return {f"{name}_{label}": 1.0 for label in QUANTILES}
    return {
        f"{name}_{label}": math.exp(float(np.interp(share * reached[-1], reached, EDGES)))
        for label, share in QUANTILES.items()
    }


def is_bin(metric: str) -> bool:
    """Whether a metric is the share of a bin, which only quantiles are made of."""
    return "_bin/" in metric


def _names(name: str) -> list[str]:
    return [f"{name}_bin/{number:02d}" for number in range(len(EDGES) - 1)]
