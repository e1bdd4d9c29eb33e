"""A run by its directory: that there is one, what it was started with, and where it can go on."""

from collections.abc import Sequence
from pathlib import Path

from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, load_recipe
from deploy.rundir.layout import RunDirectory
from moments_service.durable import DamagedFileError, verify_directory


def find_run(path: Path) -> RunDirectory:
    """The run of that directory. Raises ConfigError where there is none."""
    directory = RunDirectory(path)
    if not directory.config.exists():
        raise ConfigError(f"{directory.path}: no run there (no config.yaml in it)")
    return directory


def load_run_config(directory: RunDirectory, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that a run was started with. Raises ConfigError where this version does not know all of it."""
    return load_recipe(directory.config, overrides)


def newest_checkpoint(directory: RunDirectory) -> Path | None:
    """The checkpoint that a resume goes on from; None if there is none yet. Raises ConfigError for one that is not what was written."""
    directory.sweep()
    steps = directory.checkpoint_steps()
    if not steps:
        return None
    checkpoint = directory.checkpoint(steps[-1])
    try:
        verify_directory(checkpoint)
    except DamagedFileError as error:
        raise ConfigError(f"{error}. Remove {checkpoint} to go on from the checkpoint before it") from None
    return checkpoint
