"""A checkpoint is written by one at a time, and one that was begun is finished."""

import asyncio
import json
from pathlib import Path

import pytest

from deploy.config.models import CheckpointConfig
from deploy.run.checkpoints import Checkpoints
from deploy.rundir.layout import RunDirectory

pytestmark = pytest.mark.unit


class Parts:
    """A learner and a moments service that write when the test lets them."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.writing = 0
        self.saved: list[Path] = []

    async def save(self, directory: str) -> None:
        self.writing += 1
        assert self.writing == 1, "two checkpoints at once"
        await self.may_end.wait()
        (Path(directory) / "weights").write_text("whole")
        self.saved.append(Path(directory))
        self.writing -= 1

    async def snapshot(self, directory: str) -> None:
        (Path(directory) / "moments").write_text("whole")


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def checkpoints(tmp_path: Path, parts: Parts) -> Checkpoints:
    directory = RunDirectory.create(tmp_path, "run", "")
    return Checkpoints(CheckpointConfig(every=2, keep=2), directory, parts, parts)  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_checkpoint_whose_asker_is_cancelled_is_finished_and_not_begun_again(
    checkpoints: Checkpoints, parts: Parts, tmp_path: Path
) -> None:
    asking = asyncio.create_task(checkpoints.write(2, lambda: {"step": 2}, dict))
    await settle()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    again = asyncio.create_task(checkpoints.write(2, lambda: {"step": 2}, dict))
    await settle()
    assert parts.writing == 1
    parts.may_end.set()
    await again
    assert len(parts.saved) == 1
    written = RunDirectory(tmp_path / "latest").checkpoint(2)
    assert json.loads((written / "run.json").read_text()) == {"step": 2}


async def test_a_step_has_one_checkpoint(checkpoints: Checkpoints, parts: Parts) -> None:
    parts.may_end.set()
    assert [checkpoints.due(step) for step in (1, 2, 3, 4)] == [False, True, False, True]
    await checkpoints.write(2, lambda: {"step": 2}, dict)
    await checkpoints.write(2, lambda: {"step": 2}, dict)
    await checkpoints.write(4, lambda: {"step": 4}, dict)
    assert len(parts.saved) == 2
