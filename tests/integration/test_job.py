"""`bvblend submit` against a real `ray start --head`: follow, let go, stop, resume, and what a refusal looks like."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.run.watchdog import marked_processes
from deploy.rundir.layout import RunDirectory
from tests.conftest import MARK, ROOT, Command, brief_evaluations, free_ports, settings
from tests.ray_start import RAY, start_ray

pytestmark = pytest.mark.integration

COLD_START = ROOT / "deploy" / "recipes" / "cold_start.yaml"
START_S = 400.0
TOKEN = "a-token-for-this-test-only-0123456789"
OWN_RAY = """
import ray
from deploy.run.ray_cluster import start_own
own = start_own(1)
(node,) = ray.nodes()
print(len(ray.nodes()), node["NodeManagerAddress"], node["Resources"]["CPU"])
ray.shutdown()
own.close()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head node on loopback with a token of its own, which clients find in their environment; yields where jobs go."""
    mark, temp_dir = uuid.uuid4().hex, f"/tmp/bvblend-{os.getpid()}"
    dashboard, agent, client = free_ports(3)
    start = ["--head", "--node-ip-address=127.0.0.1", "--port=0", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
             f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
             "--num-cpus=2", f"--temp-dir={temp_dir}", "--disable-usage-stats"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        try:
            # The job's `bvblend` is the one beside this Python.
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            environment = os.environ | {MARK: mark, "PATH": path, "OMP_NUM_THREADS": "1"}
            start_ray(start, lambda: end(mark), environment=environment)
            wait_for_agent(agent, timeout_s=120)
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            end(mark)
            shutil.rmtree(temp_dir, ignore_errors=True)


def end(mark: str) -> None:
    for pid in marked_processes(MARK, mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended by itself


def wait_for_agent(port: int, timeout_s: float) -> None:
    """`ray start` returns before the node's agent, which takes jobs, listens."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/local_raylet_healthz", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            assert time.monotonic() < deadline, f"no agent on port {port} in {timeout_s} s: {error}"
            time.sleep(0.2)


def ray_job(verb: str, address: str, job_id: str) -> str:
    """Ray's own command, as somebody else would use it."""
    command = [RAY, "job", verb, "--address", address, job_id]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return done.stdout + done.stderr


def test_a_job_is_followed_let_go_stopped_with_a_checkpoint_and_resumed(
    address: str, bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    to = ("--address", address, "--working-dir", ROOT)
    short = [
        *settings(rollout__engine="transformers", checkpoint__every=0, runs_dir=tmp_path),
        *brief_evaluations(),
    ]
    submitted = bvblend(
        "submit", COLD_START, *to, "--entrypoint-num-cpus", 0.01, *short, *settings(steps=1000, rollout__cpus=0.5)
    )
    submitted.wait_for("step    2/1000  pass@1", START_S)
    submitted.process.send_signal(signal.SIGINT)
    assert submitted.wait(30) == 130, submitted.output()
    (job_id,) = set(re.findall(r"raysubmit_\w+", submitted.output()))
    assert f"{job_id} goes on" in submitted.output() and TOKEN not in submitted.output()

    assert "RUNNING" in ray_job("status", address, job_id)
    assert "was stopped" in ray_job("stop", address, job_id)
    run = RunDirectory((tmp_path / "latest").resolve())
    (step,) = run.checkpoint_steps()
    assert step >= 2 and "going on" not in submitted.output()

    # From a directory of somebody whose files are called as our packages are.
    for name in ("actors", "learner", "moments_service"):
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / f"{name}.py").write_text("raise SystemExit('a file of the user was taken for ours')")
    resume = ("--resume", run.path, "--address", address, "--working-dir", tmp_path / "own")
    resumed = bvblend("submit", *resume, *settings(steps=step + 2))
    assert resumed.wait(START_S) == 0, resumed.output()
    assert f"going on from {run.checkpoint(step)}" in resumed.output() and "SUCCEEDED" in resumed.output()
    assert [row["step"] for row in run.read_metrics()] == list(range(step + 2))
    assert (run.path / "summary.json").exists()


def test_what_the_job_says_about_the_cluster_is_the_exit_code_of_the_command(
    address: str, bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    refused = bvblend(
        "submit",
        COLD_START,
        "--address",
        address,
        "--working-dir",
        ROOT,
        *settings(runs_dir=tmp_path, rollout__actors=99),
    )
    assert refused.wait(START_S) == 3, refused.output()
    assert "no room for 99 x rollout actor" in refused.output() and "FAILED" in refused.output()


def test_a_run_of_its_own_leaves_the_ray_of_somebody_else_alone(address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OWN_RAY], cwd=ROOT, capture_output=True, text=True, timeout=START_S, check=False
    )
    assert done.stdout.split() == ["1", "127.0.0.1", "1.0"], done.stdout + done.stderr
    subprocess.run([RAY, "job", "list", "--address", address], capture_output=True, timeout=180, check=True)


def test_nobody_at_the_address_is_an_environment_problem(bvblend: Callable[..., Command], tmp_path: Path) -> None:
    (port,) = free_ports(1)
    alone = bvblend("submit", COLD_START, "--address", f"http://127.0.0.1:{port}", *settings(runs_dir=tmp_path))
    assert alone.wait(START_S) == 3, alone.output()
    assert f"no job at http://127.0.0.1:{port}" in alone.output()
