"""The mirror on S3's protocol: a real server on loopback, the real client."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from deploy.mirror.mirror import mirrored, refuse_unwritable_mirror
from deploy.rundir.layout import RunDirectory
from moments_service.durable import verify_directory
from tests.unit.test_mirror import checkpoint, config_with, contents, local, names, until

pytestmark = pytest.mark.unit


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "anybody")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fsspec.filesystem("s3").mkdir("runs")
    yield "s3://runs/mirror"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


async def test_checkpoints_arrive_whole_stay_as_many_and_come_back(bucket: str, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "runs", "mine", "name: mine\n")
    config = config_with(tmp_path, bucket)
    refuse_unwritable_mirror(config)
    there = f"{bucket}/{run.path.name}"
    notes: list[str] = []
    async with mirrored(config, run, notes.append) as mirror:
        assert mirror is not None
        for step in (5, 10, 15):
            checkpoint(run, step)
            await until(mirror, lambda step=step: f"checkpoints/step-{step:06d}/run.json" in names(there))
        await until(mirror, lambda: not any("step-000005" in name for name in names(there)))
        run.summary.write_text("{}")
    assert contents(there) == local(run)
    assert not [note for note in notes if note.startswith("mirror:")]
    back = tmp_path / "back"
    fsspec.filesystem("s3").get(there, str(back), recursive=True)
    again = RunDirectory(back)
    assert again.checkpoint_steps() == [10, 15]
    for step in again.checkpoint_steps():
        verify_directory(again.checkpoint(step))
