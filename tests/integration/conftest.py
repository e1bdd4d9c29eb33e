"""The quick start as somebody types it: once per test session, for every test that looks at what it leaves."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, made_once
from tests.unit.test_docs import fenced

ELSEWHERE = ("make install", "export PATH", "bvblend dashboard")
"""Done before the tests ran; or serves until it is stopped, which the browser tests do."""


@dataclass(frozen=True)
class QuickStart:
    """A directory in which every command of the quick start ran, in their order."""

    directory: Path
    typed: list[str]

    @property
    def output(self) -> str:
        return (self.directory / "output.log").read_text()

    @property
    def run(self) -> Path:
        """The finished run, with vLLM, as the recipe has it but for its number of steps."""
        return (self.directory / "runs" / "latest").resolve()


@pytest.fixture(scope="session")
def quick_start(tmp_path_factory: pytest.TempPathFactory) -> QuickStart:
    lines = [line for block in fenced(ROOT / "docs" / "index.md") for line in block.splitlines()]
    typed = [line for line in lines if line.strip() and not line.startswith(ELSEWHERE)]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }

    def make(directory: Path) -> None:
        (directory / "deploy").symlink_to(ROOT / "deploy")
        log = directory / "output.log"
        with log.open("w") as output:
            done = subprocess.run(
                ["bash", "-euxo", "pipefail", "-c", "\n".join(typed)],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=900,
                check=False,
            )
        assert done.returncode == 0, log.read_text()

    return QuickStart(made_once(tmp_path_factory, "quick-start", make), typed)
