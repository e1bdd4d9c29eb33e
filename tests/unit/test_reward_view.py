"""Rewards over the steps: against a plain count over the ledger, after a resume that went back, with rewards of every kind."""

from pathlib import Path

import numpy as np
import pytest

from deploy.dashboard import reward_view
from deploy.dashboard.reward_view import spread
from deploy.rundir.groups import RunGroups, Wanted
from deploy.rundir.layout import RunDirectory
from deploy.rundir.open_run import OpenRun
from tests.made_runs import MadeRun

pytestmark = pytest.mark.unit


async def test_shares_are_those_of_the_ledger_and_what_a_resume_undid_is_left_out(tmp_path: Path) -> None:
    run = MadeRun(tmp_path, steps=30, groups=6, size=4)
    await (await run.start()).steps(6)
    checkpoint = await run.snapshot(tmp_path / "checkpoint")
    await run.steps(4)
    await run.close()
    await (await run.start(1, checkpoint, step=6)).steps(2)
    found = spread(OpenRun(run.directory))
    assert found["steps"] == list(range(8)), "steps 8 and 9 were gone back on, and not trained again yet"
    assert found["bins"] == [[0.0, 0.0], [1.0, 1.0]] and found["unscored"] == [0.0] * 8
    groups = RunGroups(run.directory.moments)
    for step, shares in zip(found["steps"], found["shares"], strict=True):
        places = [place for place in groups.search(Wanted(step=step)) if place.incarnation == int(step >= 6)]
        mean = np.mean([row.group.rewards for row in groups.folded(places)])
        np.testing.assert_allclose(shares, [1.0 - mean, mean], atol=1e-12)
    await run.close()


async def test_however_long_the_run_so_many_steps_and_groups_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = MadeRun(tmp_path, steps=30, groups=6, size=2)
    await (await (await run.start()).steps(30)).finish()
    monkeypatch.setattr(reward_view, "STEPS_SHOWN", 4)
    monkeypatch.setattr(reward_view, "GROUPS_A_STEP", 2)
    read: list[int] = []
    folded = RunGroups.folded
    monkeypatch.setattr(RunGroups, "folded", lambda self, places: read.append(len(places)) or folded(self, places))
    assert spread(OpenRun(run.directory))["steps"] == [0, 9, 19, 29]
    assert read == [2, 2, 2, 2]


def test_a_run_without_a_ledger_has_no_rewards(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    found = spread(OpenRun(RunDirectory(tmp_path / "new")))
    assert found == {"steps": [], "bins": [], "shares": [], "unscored": []}


@pytest.mark.parametrize(
    "rewards",
    [np.linspace(-2.0, 3.0, 101), np.array([-1.7e308, 1.7e308, *range(20)]), np.random.default_rng(0).normal(size=500)],
    ids=["even", "huge", "normal"],
)
def test_many_different_rewards_share_bins_that_hold_them(rewards: np.ndarray) -> None:
    bins, numbers = reward_view._binned(rewards)
    assert len(bins) == reward_view.BINS and np.isfinite(bins).all()
    low, high = np.array(bins)[numbers].T
    assert ((low <= rewards) & (rewards <= high)).all()


def test_completions_without_a_reward_are_said_and_are_no_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_step = {0: np.array([np.nan, 1.0, 0.0, 1.0]), 5: np.array([np.nan, np.nan])}
    monkeypatch.setattr(reward_view, "_rewards", lambda run: by_step)
    found = spread(OpenRun(RunDirectory(tmp_path)))
    assert found["shares"] == [[0.25, 0.5], [0.0, 0.0]] and found["unscored"] == [0.25, 1.0]
