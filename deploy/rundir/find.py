"""A run by its directory: that there is one, and what it was started with."""

from collections.abc import Sequence
from pathlib import Path

from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, load_recipe
from deploy.rundir.config_file import ConfigUnreadableError, read_config
from deploy.rundir.layout import RunDirectory
from deploy.rundir.reading import reason


def find_run(path: Path) -> RunDirectory:
    """The run of that directory. Raises ConfigError where there is none."""
    directory = RunDirectory(path)
    try:
        directory.config.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{path.absolute()}: no run there (no config.yaml in it); `bvblend runs DIRECTORY` lists those of a directory"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path.absolute()}: the run there cannot be read: {reason(error)}") from None
    return directory


def load_run_config(directory: RunDirectory, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that a run was started with. Raises ConfigError where this version does not know all of it."""
    try:
        read_config(directory)
    except (OSError, ConfigUnreadableError) as error:
        raise ConfigError(f"{directory.path}: {reason(error)}") from None
    return load_recipe(directory.config, overrides)
