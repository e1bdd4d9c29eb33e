"""A run as a Ray job, from anywhere that reaches the cluster's dashboard: `bvblend submit`."""

import asyncio
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.console import Console

from deploy.cluster.address import dashboard_of
from deploy.cluster.environment import EnvironmentProblemError
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError

STOP_WAIT_S = 120
"""Seconds between a stop request and the end by force, for the last checkpoint; Ray's own default is 3."""
STATUS_POLL_S = 0.5
DONE, FAILED, STOPPED = 0, 4, 130
OWN_CODES = frozenset({2, 3, STOPPED})
"""Exit codes of `bvblend train` that say more than that it failed."""


@dataclass(frozen=True, slots=True)
class DriverResources:
    """What Ray reserves for the driver, and with it for the moments service; with nothing set it runs on the head."""

    cpus: float | None = None
    gpus: float | None = None
    others: dict[str, float] | None = None


def train_command(
    recipe: Path | None, resume: Path | None, overrides: Sequence[str], working_dir: Path | None, *more: str
) -> str:
    """The job's shell command; more: further options of `bvblend train`. Raises ConfigError for a recipe that would not travel with the working directory."""
    if recipe is None:
        named = ["--resume", str(resume)]
    elif working_dir is None:
        named = [str(recipe.resolve())]
    elif recipe.resolve().is_relative_to(working_dir.resolve()):
        named = [str(recipe.resolve().relative_to(working_dir.resolve()))]
    else:
        raise ConfigError(
            f"{recipe} is not in the working directory {working_dir}, which is all that the job gets to see"
        )
    return shlex.join(["bvblend", "train", *named, *(part for one in overrides for part in ("--set", one)), *more])


def refuse_relative_runs_dir(config: RunConfig) -> None:
    """A job's working directory is a copy that Ray deletes; a run in it would be lost."""
    if not Path(config.runs_dir).is_absolute():
        raise ConfigError(
            f"runs_dir: {config.runs_dir!r} would be in the job's working directory, which Ray deletes; name a directory "
            "that every node sees, for example --set runs_dir=/shared/runs"
        )


def runtime_environment(file: Path | None, working_dir: Path | None) -> dict[str, Any]:
    """Ray's runtime environment of the job, from a YAML or JSON file and the working directory. Raises ConfigError."""
    environment: Any = {}
    if file is not None:
        try:
            environment = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"--runtime-env {file}: {error}") from None
    if not isinstance(environment, dict):
        raise ConfigError(f"--runtime-env {file}: not a mapping of Ray's runtime environment fields")
    if working_dir is not None:
        if not working_dir.is_dir():
            raise ConfigError(f"--working-dir {working_dir}: no such directory")
        if (taken := working_dir / "deploy.py").exists():
            # Ray puts a job's directory before all that is installed, and the command could not find itself.
            raise ConfigError(
                f"{taken} has the name of a package of bvblend, and a job would take it for that: rename it"
            )
        environment["working_dir"] = str(working_dir)
    variables = environment.get("env_vars") or {}
    return environment | {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **variables}}


def driver_resources(cpus: float | None, gpus: float | None, others: str | None) -> DriverResources:
    """others: JSON, `{"head": 1}`. Raises ConfigError."""
    if others is None:
        return DriverResources(cpus, gpus)
    try:
        amounts = json.loads(others)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--entrypoint-resources {others}: {error}") from None
    if not isinstance(amounts, dict) or not all(isinstance(amount, int | float) for amount in amounts.values()):
        raise ConfigError(f'--entrypoint-resources {others}: write it as {{"name": 1}}')
    return DriverResources(cpus, gpus, amounts)


class Job:
    """A submitted job."""

    def __init__(self, client: JobSubmissionClient, job_id: str, address: str) -> None:
        self._client = client
        self.job_id = job_id
        self._address = address

    @classmethod
    def submit(cls, address: str, command: str, environment: dict[str, Any], driver: DriverResources) -> "Job":
        """Hand the command over. Raises EnvironmentProblemError where the cluster cannot be reached or does not take it."""
        address = dashboard_of(address)
        try:
            client = JobSubmissionClient(address)
            job_id = client.submit_job(
                entrypoint=command,
                runtime_env=environment,
                entrypoint_num_cpus=driver.cpus,
                entrypoint_num_gpus=driver.gpus,
                entrypoint_resources=driver.others,
            )
        except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
            raise EnvironmentProblemError(f"no job at {address}: {error}") from None
        return cls(client, job_id, address)

    def hint(self) -> str:
        """How to watch and stop it."""
        commands = (f"ray job {verb} --address {self._address} {self.job_id}" for verb in ("logs --follow", "stop"))
        return "watch it with `{}`, end it with a checkpoint with `{}`".format(*commands)

    def follow(self, console: Console) -> int:
        """Print the job's log until it ends; returns the exit code of `bvblend`. Ctrl-C leaves the job running.

        Raises EnvironmentProblemError where the connection breaks.
        """
        try:
            details = asyncio.run(self._ended(console))
        except KeyboardInterrupt:
            console.print(f"{self.job_id} goes on; {self.hint()}", soft_wrap=True)
            return STOPPED
        except RuntimeError as error:
            raise EnvironmentProblemError(
                f"lost sight of {self.job_id}, which may go on: {error}; {self.hint()}"
            ) from None
        console.print(f"{self.job_id}: {details.status}")
        if details.status == JobStatus.SUCCEEDED:
            return DONE
        if details.status == JobStatus.STOPPED:
            return STOPPED
        if details.driver_exit_code is None:  # it did not come to a log of its own
            console.print(details.message, soft_wrap=True)
        return details.driver_exit_code if details.driver_exit_code in OWN_CODES else FAILED

    async def _ended(self, console: Console) -> JobDetails:
        async for lines in self._client.tail_job_logs(self.job_id):
            console.print(lines, end="", soft_wrap=True)
        # The log ends a moment before the job does.
        while not (details := self._client.get_job_info(self.job_id)).status.is_terminal():  # noqa: ASYNC110 - asked over HTTP
            await asyncio.sleep(STATUS_POLL_S)
        return details
