"""Moments that runs have saved: in every checkpoint, and at their end."""

from pathlib import Path

from deploy.config.recipe import ConfigError
from deploy.rundir.find import load_run_config
from deploy.rundir.layout import RunDirectory
from moments_service.offline.portable import PortableMoments


def newest_snapshot(run: RunDirectory) -> Path | None:
    """The newest saved moments of a run: its end, or its newest checkpoint; None if nothing was saved yet."""
    steps = run.checkpoint_steps()
    newest = run.checkpoint(steps[-1]) / "moments" if steps else None
    if not run.final_moments.exists():
        return newest
    # A finished run that was resumed for more steps has checkpoints past its former end.
    trained = next((row["step"] + 1 for row in run.last_metrics(1)), 0)
    return newest if newest is not None and steps[-1] >= trained else run.final_moments


def read_saved(source: Path) -> PortableMoments:
    """Moments of a run or of one checkpoint of it. Raises ConfigError if there are none."""
    run = RunDirectory(source)
    snapshot = newest_snapshot(run) if run.config.exists() else source / "moments"
    if not run.config.exists():
        run = RunDirectory(source.absolute().parent.parent)
        if not run.config.exists() or not (source / "run.json").exists():
            raise ConfigError(f"{source} is neither a run nor a checkpoint of one")
    if snapshot is None:
        raise ConfigError(f"{source}: nothing is saved yet; a run saves its moments in every checkpoint and at its end")
    config = load_run_config(run)
    try:
        return PortableMoments.from_snapshot(snapshot, config.moments, config.policy, run.path.name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
