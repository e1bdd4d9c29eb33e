"""Functions on several ranks over gloo, each in a process of its own. Imports torch late: every unit test imports this."""

import multiprocessing
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

OnTwoRanks = Callable[..., list[Any]]
"""function, *arguments -> what `function(rank, 2, *arguments)` returned on either rank."""


@pytest.fixture(scope="session")
def rank_processes() -> Iterator[tuple[ProcessPoolExecutor, ProcessPoolExecutor]]:
    """A process for each of two ranks, which stays for the next test, since importing torch takes seconds.

    Always of the same rank: torch remembers which part of a tensor is a process's own.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as first, ProcessPoolExecutor(1, mp_context=context) as second:
        yield first, second


@pytest.fixture(scope="session")
def on_two_ranks(
    tmp_path_factory: pytest.TempPathFactory, rank_processes: tuple[ProcessPoolExecutor, ProcessPoolExecutor]
) -> OnTwoRanks:
    """Runs a function on two ranks of a process group."""
    stores = tmp_path_factory.mktemp("stores")

    def run(function: Callable[..., Any], *arguments: Any) -> list[Any]:
        store = stores / uuid.uuid4().hex
        calls = [
            process.submit(_on_rank, store, rank, 2, function, arguments) for rank, process in enumerate(rank_processes)
        ]
        return [call.result(timeout=120) for call in calls]

    return run


def on_one_rank(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(0, 1, *arguments)` returns, in this process."""
    import torch.distributed as dist

    return _in_group(dist.HashStore(), 0, 1, function, arguments)


def _on_rank(store: Path, rank: int, ranks: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    return _in_group(dist.FileStore(str(store), ranks), rank, ranks, function, arguments)


def _in_group(store: Any, rank: int, ranks: int, function: Callable[..., Any], arguments: Any) -> Any:
    import torch.distributed as dist

    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    try:
        return function(rank, ranks, *arguments)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
