"""The clusters and the moments of a run, made again from what it wrote down."""

import itertools
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from moments_service.config import MomentsConfig
from moments_service.history import RunHistory
from moments_service.ledger import LedgerReader
from moments_service.progress import Progress, silent
from moments_service.state import MOMENTS_FILE, MomentsState


def rebuild(
    config: MomentsConfig,
    directory: Path,
    incarnation: int | None = None,
    before_step: int = 2**62,
    progress: Progress = silent,
) -> RunHistory:
    """Fold every commit that the state of `incarnation` (the newest if None) is made of, up to `before_step`.

    The state equals what the service held, bit for bit; neither it nor the clusters are None in what is returned. Raises
    FileNotFoundError where there is no ledger, and ValueError where there are no clusters.
    """
    with LedgerReader(directory) as reader:
        history = RunHistory(config, directory)
        newest = reader.last_incarnation() if incarnation is None else incarnation
        lineage = reader.lineage(newest)
        stretches = [(number, first, min(last, before_step - 1)) for number, first, last in lineage]
        steps = sum(first <= step <= last for number, first, last in stretches for step in reader.steps(number))
        done = itertools.count(1)
        for number, first, last in stretches:
            history.replay(reader, number, first, last, lambda: progress(next(done), steps))
        if history.state is None:
            raise ValueError(f"{directory} has no clusters: its run ended before the first step")
        return history


def differing_arrays(state: MomentsState, snapshot: Path) -> list[str]:
    """Names of the arrays that are not bit for bit those of the snapshot in a directory; none where it is the same state."""
    own, saved = state.arrays(), load_file(snapshot / MOMENTS_FILE)

    def bits(arrays: dict[str, np.ndarray], name: str) -> tuple[object, ...] | None:
        return (arrays[name].dtype, arrays[name].shape, arrays[name].tobytes()) if name in arrays else None

    return sorted(name for name in own.keys() | saved.keys() if bits(own, name) != bits(saved, name))
