"""A real run with every tracker that is installed, offline, and its resume."""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from deploy.cluster.environment import EnvironmentProblemError
from deploy.watching.trackers import MODULES, chosen_trackers
from moments_service.ledger.schema import open_for_reading
from tests.conftest import ROOT, Command, settings

pytestmark = pytest.mark.integration

RECIPE = ROOT / "deploy" / "recipes" / "cold_start.yaml"
START_S = 300.0


def installed() -> list[str]:
    found = []
    for name in MODULES:
        try:
            found += chosen_trackers(name, None)
        except EnvironmentProblemError:
            continue
    return found


def test_a_run_and_its_resume_are_one_run_to_every_tracker(
    bvblend: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (names := installed()):
        pytest.skip("no tracker is installed: make install-trackers")
    for variable in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(variable)
    small = settings(
        rollout__engine="transformers", batch_groups=4, group_size=2, evaluation__train_prompts=8,
        prompts__sources__0__held_out=4, checkpoint__every=2, steps=3, runs_dir=tmp_path / "runs",
    )  # fmt: skip
    first = bvblend("train", RECIPE, *small, "--track", ",".join(names))
    assert first.wait(START_S) == 0, first.output()
    run = (tmp_path / "runs" / "latest").resolve()
    # From the checkpoint after step 2, so the third step is made again.
    second = bvblend("train", "--resume", run, "--set", "steps=5")
    assert second.wait(START_S) == 0, second.output()

    for command in (first, second):
        assert "tracker" not in command.output().replace("/trackers/", "")
        command.wait_until_nothing_is_left(30)
    assert not (run / "prometheus.json").exists()
    assert {path.name for path in (run / "trackers").iterdir()} == set(names)
    if "tensorboard" in names:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run / "trackers" / "tensorboard"))
        events.Reload()
        assert [event.step for event in events.Scalars("reward/mean")] == [1, 2, 3, 4, 5]
        assert [event.step for event in events.Scalars("evaluation/held_out")] == [0, 5]
    if "wandb" in names:
        id_ = (run / "trackers" / "wandb" / "run_id").read_text()
        assert len(list((run / "trackers" / "wandb" / "wandb").glob(f"offline-run-*-{id_}"))) == 2
    if "mlflow" in names:
        with closing(open_for_reading(run / "trackers" / "mlflow" / "mlflow.db")) as store:
            assert store.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
            steps = store.execute("SELECT step FROM metrics WHERE key = 'reward/mean' ORDER BY step").fetchall()
            assert steps == [(1,), (2,), (3,), (3,), (4,), (5,)]
