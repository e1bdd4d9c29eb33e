"""Layers that carry a state from token to token, in packed tries: they are run along each sample's own path, and nothing else is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from learner.batching.packed import Index, Segments

MIXERS = frozenset(
    {
        "BambaMixer",
        "FalconH1Mixer",
        "GraniteMoeHybridMambaLayer",
        "JambaMambaMixer",
        "Lfm2MoeShortConv",
        "Lfm2ShortConv",
        "NemotronHMamba2Mixer",
        "OlmoHybridGatedDeltaNet",
        "Qwen3NextGatedDeltaNet",
        "Qwen3_5GatedDeltaNet",
        "Qwen3_5MoeGatedDeltaNet",
        "Zamba2MambaMixer",
    }
)
"""Classes of transformers that take [B, L, hidden] causally, with a state that begins anew in every row, and say nothing of positions."""
LEAST_FILLED = 0.875
"""Paths that are run together are at least so long as this share of the longest of them."""


@dataclass(frozen=True, slots=True)
class PathRows:
    """Root-to-leaf paths of T packed tokens, as rows of like length."""

    rows: tuple[torch.Tensor, ...]
    """[B, L] int64 each: packed tokens; a shorter path's last one again past its end, where nobody looks."""
    places: torch.Tensor
    """[T] int64: where a packed token stands in all rows, one after the other; of a shared one the first of its places."""

    @classmethod
    def of(cls, segments: Segments, device: torch.device) -> "PathRows":
        """The paths of a microbatch."""
        paths = sorted(_paths(segments), key=len, reverse=True)
        together: list[list[Index]] = []
        for path in paths:
            if together and len(path) >= LEAST_FILLED * len(together[-1][0]):
                together[-1].append(path)
            else:
                together.append([path])
        places = np.full(int(segments.starts[-1]), -1, dtype=np.int64)
        rows, before = [], 0
        for some in together:
            length = len(some[0])
            row = np.stack([np.pad(path, (0, length - len(path)), mode="edge") for path in some])
            for number, path in enumerate(some):
                free = np.flatnonzero(places[path] < 0)
                places[path[free]] = before + number * length + free
            rows.append(torch.from_numpy(row).to(device, non_blocking=True))
            before += row.size
        return cls(tuple(rows), torch.from_numpy(places).to(device, non_blocking=True))


class Recurrence:
    """Has the mixers of a model run along the paths of a microbatch, or as transformers calls them."""

    def __init__(self, model: nn.Module) -> None:
        """model: changed in place."""
        self._paths: PathRows | None = None
        self._mixers = mixers(model)
        for mixer in self._mixers:
            mixer.forward = self._along_paths(mixer.forward)

    def follow(self, segments: Segments | None, device: torch.device) -> None:
        """Go along the paths of a microbatch from now on; None: take rows as they come."""
        self._paths = PathRows.of(segments, device) if segments is not None and self._mixers else None

    def _along_paths(self, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @torch.compiler.disable
        def run(hidden_states: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
            if self._paths is None:
                return forward(hidden_states, *others, **named)
            tokens = hidden_states[0]
            mixed = [forward(tokens[rows]).flatten(0, 1) for rows in self._paths.rows]
            return torch.cat(mixed).index_select(0, self._paths.places)[None]

        return run


def mixers(model: nn.Module) -> list[Any]:
    """The modules of a model that carry a state from token to token, of those classes that are known."""
    return [module for module in model.modules() if type(module).__name__ in MIXERS]


def _paths(segments: Segments) -> list[Index]:
    """Tokens from the root to each leaf."""
    starts, parents = segments.starts.tolist(), segments.parents.tolist()
    below: dict[int, Index] = {}
    inner = set(parents)
    for segment, parent in enumerate(parents):
        own = np.arange(starts[segment], starts[segment + 1])
        below[segment] = np.concatenate([below[parent], own]) if parent >= 0 else own
    return [below[segment] for segment in range(len(parents)) if segment not in inner]
