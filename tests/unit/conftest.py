"""What unit tests share."""

from collections.abc import Iterator

import pytest

from actors.sandbox.local import LocalSandbox
from tests.gloo_ranks import on_two_ranks, rank_processes

__all__ = ["on_two_ranks", "rank_processes"]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[LocalSandbox]:
    sandbox = LocalSandbox()
    yield sandbox
    sandbox.close()
