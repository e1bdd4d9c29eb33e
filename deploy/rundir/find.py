"""A run by its directory: that there is one, and what it was started with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, load_recipe
from deploy.rundir.config_file import ConfigUnreadableError, read_config
from deploy.rundir.layout import RunDirectory
from deploy.rundir.reading import reason
from moments_service.durable import DamagedFileError, verify_directory


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
        written = read_config(directory)
    except (OSError, ConfigUnreadableError) as error:
        raise ConfigError(f"{directory.path}: {reason(error)}") from None
    return load_recipe(directory.config, [*before_choices(written), *overrides])


def whole_checkpoint(directory: RunDirectory, step: int) -> Path:
    """The checkpoint after `step` steps, compared with its checksums. Raises ConfigError for one that is damaged."""
    checkpoint = directory.checkpoint(step)
    try:
        verify_directory(checkpoint)
    except DamagedFileError as error:
        raise ConfigError(
            f"{error}; name an older checkpoint with --step, or restore this one from the mirror"
        ) from None
    return checkpoint


def before_choices(written: Mapping[str, Any]) -> list[str]:
    """As overrides, what a run did from before there was a choice, where that is not today's default."""
    moments = written.get("moments")
    clusters = moments.get("clusters") if isinstance(moments, dict) else None
    # It embedded whole prompts, and its codebook goes on with them.
    return ["moments.clusters.embed=prompt"] if isinstance(clusters, dict) and "embed" not in clusters else []
