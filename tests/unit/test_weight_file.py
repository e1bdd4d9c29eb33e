"""Weights on their way to a worker: readable there, and never left behind."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from actors.engines import weight_file
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

HOLDER = """
import sys, time
from pathlib import Path
import numpy as np
from actors.engines import weight_file
weight_file._SHARED_MEMORY = Path(sys.argv[1])
with weight_file.write_weights(np.arange(2**20, dtype=np.uint8)) as file:
    print(weight_file.path_of(file), flush=True)
    sys.stdin.read()
"""


def test_another_process_reads_what_has_no_name_and_a_kill_leaves_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert holder.stdout is not None
        path = Path(holder.stdout.readline().strip())
        assert str(path.readlink()).startswith(str(tmp_path)), "it is not where there is room"
        assert np.array_equal(np.memmap(path, dtype=np.uint8, mode="r"), np.arange(2**20, dtype=np.uint8))
        assert list(tmp_path.iterdir()) == []
    finally:
        holder.kill()
        holder.wait(10)
    assert not path.exists() and list(tmp_path.iterdir()) == []


def test_a_small_shared_memory_is_gone_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_file, "_SHARED_MEMORY", tmp_path / "absent")
    monkeypatch.setattr(weight_file.tempfile, "tempdir", str(tmp_path))
    with weight_file.write_weights(np.ones(16, dtype=np.uint8)) as file:
        assert str(Path(weight_file.path_of(file)).readlink()).startswith(str(tmp_path))
