"""Weights & Biases, offline unless the environment says otherwise."""

import os
import uuid

from deploy.watching.sink import Numbers, TrackedRun
from moments_service import durable

STEP = "policy_step"
"""wandb's own step can only grow; a resume may go back, so the steps of the run are a number like others."""

INIT_TIMEOUT_S = 20.0
"""A server that does not answer by then is given up; a process that ends sooner is held up by wandb until then."""


class WandbSink:
    """One wandb run, with the same id after a resume.

    Online where WANDB_MODE says so or WANDB_API_KEY is set; `wandb sync` uploads what was logged offline. Nothing of the
    machine is collected: no system statistics, no code, no console output.
    """

    def __init__(self, run: TrackedRun) -> None:
        for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            os.environ.setdefault(variable, str(run.directory / "cache"))
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # Imported here: it reads the variables above when it is.
        import wandb

        remembered = run.directory / "run_id"
        if not remembered.exists():
            durable.write_text(remembered, uuid.uuid4().hex)
        settings = wandb.Settings(
            mode=os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline"),
            root_dir=str(run.directory),
            console="off",
            silent=True,
            init_timeout=INIT_TIMEOUT_S,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "bvblend"),
            group=str(run.config["name"]),
            name=run.name,
            id=remembered.read_text(encoding="utf-8"),
            resume="allow",
            config=dict(run.config),
            settings=settings,
        )
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, numbers: Numbers) -> None:
        self._run.log({**numbers, STEP: step})

    def alarm(self, step: int, text: str) -> None:
        self._run.alert("alarm", f"after step {step}: {text}")

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
