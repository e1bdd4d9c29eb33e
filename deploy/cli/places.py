"""Where a command writes, and what is said of a place that cannot be written."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from deploy.cluster.environment import EnvironmentProblemError
from deploy.config.models import RunConfig
from deploy.config.recipe import dump_config
from deploy.rundir.layout import RunDirectory


def refuse_unwritable(out: Path) -> None:
    """Raise EnvironmentProblemError where no file `out` can be written, before work that takes long."""
    with writing(out):
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with TemporaryFile(dir=out.parent):
            pass


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raises EnvironmentProblemError, which names `out`, for an OSError inside."""
    try:
        yield
    except OSError as error:
        raise EnvironmentProblemError(
            f"--out {out}: it cannot be written there ({error.strerror or error}); name another place"
        ) from None


def new_run_directory(config: RunConfig) -> RunDirectory:
    """Raises EnvironmentProblemError where none can be made in `runs_dir`."""
    try:
        return RunDirectory.create(Path(config.runs_dir), config.name, dump_config(config))
    except OSError as error:
        why = (
            "a file is in the way"
            if isinstance(error, FileExistsError | NotADirectoryError)
            else error.strerror or error
        )
        raise EnvironmentProblemError(
            f"runs_dir: {config.runs_dir}: no run directory can be made there ({why}); name another place"
        ) from None
