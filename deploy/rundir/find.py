"""A run by its directory: that there is one, and what it was started with."""

from collections.abc import Sequence
from pathlib import Path

from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, load_recipe
from deploy.rundir.layout import RunDirectory


def find_run(path: Path) -> RunDirectory:
    """The run of that directory. Raises ConfigError where there is none."""
    directory = RunDirectory(path)
    if not directory.config.exists():
        raise ConfigError(f"{directory.path}: no run there (no config.yaml in it)")
    return directory


def load_run_config(directory: RunDirectory, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that a run was started with. Raises ConfigError where this version does not know all of it."""
    return load_recipe(directory.config, overrides)
