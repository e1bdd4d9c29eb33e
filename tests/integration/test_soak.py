"""A run of many short steps keeps nothing of them: memory, descriptors and threads of our own processes stay where they are."""

from pathlib import Path

import pytest

from benchmarks.soak import MOST_KIB_A_STEP, OURS, slope, soak, totals

pytestmark = [pytest.mark.integration, pytest.mark.long]

STEPS = 1500
WARM = 1000
"""Steps until caches, pools and the allocator have what they need."""


def test_nothing_of_ours_grows_with_the_steps(tmp_path: Path) -> None:
    samples, reached = soak(STEPS, every_s=2.0, limit_s=3600.0, runs=tmp_path)
    assert reached > 0.9 * STEPS
    uses = totals([seen for seen in samples if seen[0].step > WARM])
    for role in OURS:
        late = uses[role]
        grown = slope([(each.step, each.anonymous_kib) for each in late])
        assert grown.each - 2 * grown.error < MOST_KIB_A_STEP, f"{role}: {grown}"
        for name in ("descriptors", "threads"):
            first, last = ({getattr(each, name) for each in part} for part in (late[:10], late[-10:]))
            assert min(last) <= max(first), f"{role}: {name} went from {first} to {last}"
