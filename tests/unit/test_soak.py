"""The soak benchmark measures what it says: slopes with honest errors, and every process below the driver by its role."""

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak import MOST_KIB_A_STEP, Use, figures, roles, slope, totals, use


@pytest.mark.parametrize("growth", [0.0, 3.0])
def test_a_slope_lies_within_its_errors_of_the_truth(growth: float) -> None:
    generator = np.random.default_rng(0)
    steps = np.arange(0.0, 400.0, 2.0)
    off = []
    for _ in range(200):
        # Neighbours alike, as memory is: a walk that forgets.
        noise, walk = generator.normal(0, 30, len(steps)), 0.0
        values = []
        for step, kick in zip(steps, noise, strict=True):
            walk = 0.5 * walk + kick
            values.append(1000.0 + growth * step + walk)
        found = slope(list(zip(steps.tolist(), values, strict=True)))
        off.append((found.each - growth) / found.error)
    assert abs(np.mean(off)) < 0.3
    assert 0.8 < np.std(off) < 1.7


def test_without_noise_the_slope_is_exact() -> None:
    found = slope([(float(step), 5.0 + 0.25 * step) for step in range(50)])
    assert found.each == pytest.approx(0.25) and found.error == pytest.approx(0.0, abs=1e-9)


def test_what_a_process_uses_is_read_from_the_kernel() -> None:
    before = use(0, "driver", os.getpid())
    # Pages that the process cannot have had before, as what the allocator gives back and forth may be.
    kept = mmap.mmap(-1, 32 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    kept.write(os.urandom(len(kept)))
    with Path(os.devnull).open() as one, Path(os.devnull).open() as other:
        after = use(1, "driver", os.getpid())
        assert after.descriptors == before.descriptors + 2 and not (one.closed or other.closed)
    assert 30 * 1024 < after.anonymous_kib - before.anonymous_kib < 40 * 1024
    assert after.rss_kib >= after.pss_kib >= after.uss_kib > len(kept) // 1024
    assert after.threads == before.threads


def test_roles_come_from_the_run_from_ray_and_from_who_started_a_process(tmp_path: Path) -> None:
    child = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    nested = f"import subprocess, sys; subprocess.run({child!r}, stdin=sys.stdin)"
    with (
        subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as rollout,
        subprocess.Popen([*child, "gcs_server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as gcs,
    ):
        for process in (rollout, gcs):
            assert process.stdout is not None and process.stdout.readline() == b"\n"
        live = {"processes": [{"pid": rollout.pid, "role": "rollout 0", "node": "127.0.0.1"}]}
        (tmp_path / "live.json").write_text(json.dumps(live))
        found = roles(tmp_path, os.getpid())
        assert found[os.getpid()] == "driver" and found[rollout.pid] == "rollout" and found[gcs.pid] == "Ray: GCS"
        assert list(found.values()).count("rollout's children") == 1
        for process in (rollout, gcs):
            assert process.stdin is not None
            process.stdin.close()


def test_growth_of_ours_has_a_bound_and_that_of_ray_is_said() -> None:
    samples = [
        [
            Use(
                step,
                role,
                pid,
                1000 + grown * step,
                900,
                800,
                700 + grown * step,
                descriptors=9 + step // 75,
                threads=4,
            )
            for pid, (role, grown) in enumerate((("driver", 2), ("Ray: GCS", 5), ("rollout", 0), ("rollout", 1)))
        ]
        for step in range(0, 100, 2)
    ]
    assert [each.pid for each in totals(samples)["rollout"]] == [2] * 50
    rows = {row["name"]: row for row in figures(samples)}
    assert (
        rows["driver, anonymous"]["value"] == pytest.approx(2.0)
        and rows["driver, anonymous"]["target"] == MOST_KIB_A_STEP
    )
    assert rows["rollout, anonymous"]["value"] == pytest.approx(1.0)
    assert rows["Ray: GCS, rss"]["value"] == pytest.approx(5.0) and rows["Ray: GCS, anonymous"]["target"] is None
    assert rows["driver, descriptors, change"]["value"] == 1 and rows["driver, descriptors, change"]["target"] == 0.0
    assert rows["driver, threads, change"]["value"] == 0
