"""Batches whose gradient was not finite, kept so that somebody can look at them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file

from learner.batching.packed import PackedBatch
from moments_service.durable import whole_directory, write_json

KEPT = 8
"""Most updates that a directory keeps."""


def keep_batch(directory: Path, name: str, plan: Sequence[PackedBatch], about: Mapping[str, object]) -> Path | None:
    """Write one rank's microbatches of one update as `name`: tensors by `microbatch.array`, and `about.json`.

    Returns where; None where `directory` holds KEPT of them already.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if len(list(directory.iterdir())) >= KEPT:
        return None
    with whole_directory(directory / name) as target:
        tensors = {f"{i}.{key}": value for i, batch in enumerate(plan) for key, value in batch.tensors().items()}
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()}, target / "batch.safetensors"
        )
        write_json(target / "about.json", dict(about), indent=1)
    return directory / name
