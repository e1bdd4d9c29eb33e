"""`ray job submit` against a real `ray start --head`."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.watchdog import marked_processes
from tests.conftest import MARK, ROOT, settings

pytestmark = pytest.mark.integration

RAY = str(Path(sys.executable).parent / "ray")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head node on loopback with a token of its own; yields the environment that a client needs."""
    mark = uuid.uuid4().hex
    environment = os.environ | {
        MARK: mark,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-for-this-test-only-0123456789",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    start = ["--head", "--node-ip-address=127.0.0.1", "--port=6399", "--dashboard-host=127.0.0.1", "--dashboard-port=8299",
             "--dashboard-agent-listen-port=8298",
        "--num-cpus=2", f"--temp-dir=/tmp/bvblend-{os.getpid()}", "--disable-usage-stats"]  # fmt: skip
    try:
        subprocess.run([RAY, "start", *start], env=environment, check=True, capture_output=True, timeout=120)
        wait_for_agent(8298, environment["RAY_AUTH_TOKEN"], timeout_s=120)
        yield environment | {"RAY_ADDRESS": "http://127.0.0.1:8299"}
    finally:
        for pid in marked_processes(MARK, mark):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(f"/tmp/bvblend-{os.getpid()}", ignore_errors=True)


def wait_for_agent(port: int, token: str, timeout_s: float) -> None:
    """`ray start` returns before the node's agent, which takes jobs, listens."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/local_raylet_healthz", headers={"Authorization": f"Bearer {token}"}
    )
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            assert time.monotonic() < deadline, f"no agent on port {port} in {timeout_s} s: {error}"
            time.sleep(0.2)


def test_a_recipe_runs_as_a_ray_job_with_a_readable_log(cluster: dict[str, str], tmp_path: Path) -> None:
    command = ["bvblend", "train", "deploy/recipes/cold_start.yaml",
               *settings(steps=3, evaluation__train_prompts=8, checkpoint__every=0, runs_dir=tmp_path)]  # fmt: skip
    submitted = subprocess.run(
        [RAY, "job", "submit", "--working-dir", str(ROOT), "--", *command],
        env=cluster, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    log = submitted.stdout + submitted.stderr
    assert submitted.returncode == 0, log
    assert "succeeded" in log
    for step in (1, 2, 3):
        assert f"step    {step}/3  pass@1" in log
    assert (tmp_path / "latest" / "summary.json").exists()
