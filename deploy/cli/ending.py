"""The last words of a command: one sentence for a person, the exit code, and in the run directory what led to it."""

import traceback

from actors.redaction import redacted
from deploy.cli.console import errors
from deploy.cluster.environment import EnvironmentProblemError
from deploy.config.recipe import ConfigError
from deploy.run.errors import StoppedByHandError, in_a_sentence
from deploy.rundir.layout import Ending, RunDirectory


def exit_code(error: BaseException) -> int:
    """0 done, 2 configuration or usage, 3 environment, 4 the run failed, 130 stopped by hand."""
    if isinstance(error, ConfigError):
        return 2
    if isinstance(error, EnvironmentProblemError):
        return 3
    return 130 if isinstance(error, KeyboardInterrupt | StoppedByHandError) else 4


def say(error: BaseException) -> None:
    """Print why the command ends. What a person is asked to change comes with its own layout; anything else in one line."""
    ours = isinstance(error, ConfigError | EnvironmentProblemError | StoppedByHandError)
    errors.print(redacted(str(error) if ours else in_a_sentence(error)), style="red", soft_wrap=True)


def keep(directory: RunDirectory, error: BaseException) -> None:
    """Write the traceback into the run directory; where that fails, as on a full disk, say so: the reason itself was said before."""
    how: Ending = "stopped" if exit_code(error) == 130 else "failed"
    try:
        directory.end_early(how, redacted("".join(traceback.format_exception(error))))
    except OSError as unwritten:
        errors.print(
            f"{directory.error} could not be written: {unwritten.strerror or unwritten}", style="red", soft_wrap=True
        )
