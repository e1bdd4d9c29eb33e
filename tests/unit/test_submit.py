"""What `bvblend submit` hands to Ray, and what it refuses before anything is sent."""

import json
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ray.dashboard.modules.job.pydantic_models import JobType
from ray.job_submission import JobDetails, JobStatus
from rich.console import Console
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.cluster.submit import Job, driver_resources, refuse_relative_runs_dir, runtime_environment, train_command
from deploy.config.recipe import ConfigError
from tests.unit.test_placement import recipe

pytestmark = pytest.mark.unit


def test_the_recipe_is_named_as_the_job_sees_it(tmp_path: Path) -> None:
    (tmp_path / "my recipes").mkdir()
    file = tmp_path / "my recipes" / "a.yaml"
    inside = train_command(file, None, ["seed=1", "name=it's"], tmp_path)
    assert shlex.split(inside) == ["bvblend", "train", "my recipes/a.yaml", "--set", "seed=1", "--set", "name=it's"]
    assert shlex.split(train_command(file, None, (), None))[2] == str(file)
    with pytest.raises(ConfigError, match="is not in the working directory"):
        train_command(file, None, (), tmp_path / "elsewhere")


def test_how_a_run_is_gone_on_with_travels_with_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    def submit(address: str, command: str, *_: object) -> Job:
        sent.append(command)
        return Job(EndedJob(JobStatus.SUCCEEDED, 0), "raysubmit_1", address)  # type: ignore[arg-type]

    monkeypatch.setattr(Job, "submit", submit)
    how = ["--from-step", "40", "--resume-from-older", "--without-lost-groups", "--take-over"]
    done = CliRunner().invoke(app, ["submit", "--resume", "/shared/runs/a", *how, "--no-wait"])
    assert done.exit_code == 0, done.output
    assert shlex.split(sent[0]) == ["bvblend", "train", "--resume", "/shared/runs/a", *how]
    refused = CliRunner().invoke(app, ["submit", "recipe.yaml", "--take-over"])
    assert isinstance(refused.exception, ConfigError) and "go with --resume" in str(refused.exception)


def test_a_file_that_a_job_would_take_for_our_command_is_refused(tmp_path: Path) -> None:
    (tmp_path / "actors.py").touch()
    assert runtime_environment(None, tmp_path)["working_dir"] == str(tmp_path)
    (tmp_path / "deploy.py").touch()
    with pytest.raises(ConfigError, match=r"deploy\.py has the name of a package of bvblend.*rename it"):
        runtime_environment(None, tmp_path)


def test_a_run_to_resume_is_named_as_it_is() -> None:
    resumed = train_command(None, Path("/shared/runs/a"), ["steps=9"], Path("/code"))
    assert resumed == "bvblend train --resume /shared/runs/a --set steps=9"


def test_a_stop_has_time_for_a_checkpoint_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "environment.yaml"
    file.write_text("env_vars: {HF_HUB_OFFLINE: '1'}\npip: [six]\n")
    found = runtime_environment(file, tmp_path)
    assert found == {
        "env_vars": {"HF_HUB_OFFLINE": "1", "RAY_JOB_STOP_WAIT_TIME_S": "120"},
        "pip": ["six"],
        "working_dir": str(tmp_path),
    }
    file.write_text(json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "9"}}))
    assert runtime_environment(file, None) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "9"}}


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_a_runtime_environment_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "environment.yaml").write_text(text)
    with pytest.raises(ConfigError, match="--runtime-env"):
        runtime_environment(tmp_path / "environment.yaml", None)
    with pytest.raises(ConfigError, match="--runtime-env"):
        runtime_environment(tmp_path / "nothing.yaml", None)


def test_resources_of_the_driver_are_json() -> None:
    assert driver_resources(2, None, '{"head": 1}').others == {"head": 1}
    for wrong in ("head=1", "[1]", '{"head": "one"}'):
        with pytest.raises(ConfigError, match="--entrypoint-resources"):
            driver_resources(None, None, wrong)


def test_a_run_in_a_directory_that_ray_deletes_is_refused() -> None:
    with pytest.raises(ConfigError, match="runs_dir: 'runs' would be in the job's working directory"):
        refuse_relative_runs_dir(recipe())
    refuse_relative_runs_dir(recipe(runs_dir="/shared/runs"))


class EndedJob:
    """A job server whose job has ended with `status`."""

    def __init__(self, status: JobStatus, code: int | None) -> None:
        self._details = JobDetails(
            type=JobType.SUBMISSION, status=status, driver_exit_code=code, message="why", entrypoint=""
        )

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        yield "a line\n"

    def get_job_info(self, job_id: str) -> JobDetails:
        return self._details


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.STOPPED, None, 130),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, 130, 130),
        (JobStatus.FAILED, 1, 4),
        (JobStatus.FAILED, None, 4),
    ],
)
def test_the_end_of_the_job_is_the_end_of_the_command(
    status: JobStatus, code: int | None, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(EndedJob(status, code), "raysubmit_1", "http://head:8265")  # type: ignore[arg-type]
    assert job.follow(Console()) == expected
    printed = capsys.readouterr().out
    assert "a line\n" in printed and str(status) in printed
    assert ("why" in printed) == (status == JobStatus.FAILED and code is None)
