"""A checkpoint is written by one at a time, and one that was begun is finished."""

import asyncio
import json
from pathlib import Path

import pytest

from deploy.config.models import CheckpointConfig
from deploy.run.checkpoints import Checkpoints
from deploy.run.errors import CheckpointFailedError
from deploy.rundir.layout import RunDirectory

pytestmark = pytest.mark.unit


class Parts:
    """A learner and a moments service that write when the test lets them."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.writing = self.captured = 0
        self.saved: list[Path] = []
        self.error: Exception | None = None

    async def capture(self) -> None:
        assert self.writing == 0, "copied over what is being written"
        self.captured += 1

    async def write(self, directory: str) -> None:
        self.writing += 1
        assert self.writing == 1, "two checkpoints at once"
        await self.may_end.wait()
        if self.error is not None:
            self.writing -= 1
            raise self.error
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
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await settle()
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
    await checkpoints.written()
    assert len(parts.saved) == 2


async def test_a_step_waits_for_the_copy_alone_and_the_next_checkpoint_for_the_one_before(
    checkpoints: Checkpoints, parts: Parts, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "latest")
    await checkpoints.write(2, lambda: {"step": 2}, dict)
    assert (parts.captured, parts.saved, run.checkpoint_steps()) == (1, [], [])
    assert list(checkpoints.take_seconds()) == ["checkpoint/wait_s"]
    after = asyncio.create_task(checkpoints.write(4, lambda: {"step": 4}, dict))
    await settle()
    assert parts.captured == 1 and not after.done()
    parts.may_end.set()
    await after
    await checkpoints.close()
    assert run.checkpoint_steps() == [2, 4]
    assert set(checkpoints.take_seconds()) == {"checkpoint/wait_s", "checkpoint/write_s"}
    assert checkpoints.take_seconds() == {}


async def test_a_checkpoint_that_could_not_be_written_is_said_once_and_as_soon_as_it_is_known(
    checkpoints: Checkpoints, parts: Parts, tmp_path: Path
) -> None:
    parts.error = OSError(28, "No space left on device")
    await checkpoints.write(2, lambda: {"step": 2}, dict)
    await checkpoints.refuse_failed()
    parts.may_end.set()
    await settle()
    said = r"the checkpoint of step 2 could not be written: OSError: .*No space left on device; --resume goes on"
    with pytest.raises(CheckpointFailedError, match=said):
        await checkpoints.refuse_failed()
    await checkpoints.refuse_failed()
    assert RunDirectory(tmp_path / "latest").checkpoint_steps() == []
    with pytest.raises(CheckpointFailedError, match="the checkpoint of step 4"):
        await checkpoints.write(4, lambda: {"step": 4}, dict)
    await checkpoints.written()
