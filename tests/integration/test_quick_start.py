"""The commands of the quick start, in their order, as somebody types them who has only read that page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.unit.test_docs import fenced

pytestmark = pytest.mark.integration

ELSEWHERE = ("make install", "export PATH", "bvblend dashboard")
"""Done before the tests ran; or serves until it is stopped, which the browser tests do."""


def test_the_quick_start_does_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    lines = [line for block in fenced(ROOT / "docs" / "index.md") for line in block.splitlines()]
    typed = [line for line in lines if line.strip() and not line.startswith(ELSEWHERE)]
    assert len(typed) >= 8
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    log = tmp_path / "output.log"
    with log.open("w") as output:
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", "\n".join(typed)],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=900,
        )
    text = log.read_text()
    assert done.returncode == 0, text
    assert "step   10/10" in text and "moments-a" in text
    assert (tmp_path / "moments-a" / "about.json").exists()
    assert (tmp_path / "runs" / "compare-cold-start" / "compare.png").exists()
