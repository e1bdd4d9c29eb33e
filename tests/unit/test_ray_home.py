"""The directory of a Ray of our own: one owner, a token nobody else reads, and an end."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cluster import ray_home
from deploy.cluster.environment import EnvironmentProblemError
from deploy.cluster.ray_home import BELOW, PREFIX, SOCKET_PATH, RayHome, base, keep_token_private, sweep
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

OWNER = """
import sys
from deploy.cluster.ray_home import RayHome
home = RayHome.create()
(home.path / "session").mkdir()
print(home.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where directories are made, whatever the length of its name."""
    monkeypatch.setattr(ray_home, "base", lambda: tmp_path)
    return tmp_path


def test_what_a_killed_owner_left_goes_at_the_next_start_and_nothing_else(below: Path) -> None:
    mine = RayHome.create()
    foreign = [below / "ray", below / f"{PREFIX}without-a-lock"]
    for directory in foreign:
        (directory / "session").mkdir(parents=True)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.replace("import sys", f"import sys\nfrom pathlib import Path\nfrom deploy.cluster import ray_home\nray_home.base = lambda: Path({str(below)!r})")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        assert owner.stdout is not None
        other = Path(owner.stdout.readline().strip())
        assert other.parent == below and sweep(below) == [], "its owner lives"
    finally:
        owner.kill()
        owner.wait(10)
    assert (other / "session").is_dir()
    new = RayHome.create()
    assert {path for path in below.iterdir() if path.is_dir()} == {mine.path, new.path, *foreign}


def test_only_its_user_reads_it(below: Path) -> None:
    home = RayHome.create()
    token = home.write_token()
    assert home.path.stat().st_mode & 0o077 == token.stat().st_mode & 0o077 == 0
    assert len(token.read_text()) == 64 and token.read_text() != RayHome.create().write_token().read_text()


def test_what_workers_said_last_is_kept_without_secrets(below: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEBODYS_API_KEY", "s3cr3t-of-the-run")
    logs = RayHome.create().path / "session_2026-01-01_00-00-00_000000_1" / "logs"
    logs.mkdir(parents=True)
    (logs / "worker-a-1.err").write_text("x" * ray_home.LOG_BYTES + " token s3cr3t-of-the-run: out of memory")
    (logs / "worker-a-1.out").touch()
    (logs / "monitor.log").write_text("nothing that helps")
    RayHome(logs.parents[1], None).keep_logs(below / "kept")  # type: ignore[arg-type]
    (kept,) = (below / "kept").iterdir()
    assert kept.name == "worker-a-1.err" and kept.stat().st_size <= ray_home.LOG_BYTES + 40
    assert kept.read_text().endswith("token [redacted SOMEBODYS_API_KEY]: out of memory")


def test_a_directory_that_cannot_be_written_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    with pytest.raises(EnvironmentProblemError, match=r"/proc/nowhere: No such file.*RAY_TMPDIR"):
        RayHome.create()


def test_sockets_get_names_that_the_kernel_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(ray_home.tempfile, "tempdir", str(long))
    assert base() == Path("/tmp")
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(EnvironmentProblemError, match=f"RAY_TMPDIR={long} is .* at most ") as refused:
        base()
    most = int(str(refused.value).rpartition(" ")[2])
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (most - 1))
    assert len(str(base())) + len(f"/{PREFIX}12345678") + BELOW == SOCKET_PATH


def test_the_token_of_all_clusters_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_token_private()  # there is none
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("t")
    token.chmod(0o644)
    keep_token_private()
    assert token.stat().st_mode & 0o777 == 0o600
    token.chmod(0o400)
    keep_token_private()
    assert token.stat().st_mode & 0o777 == 0o400
