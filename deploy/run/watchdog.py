"""Ends what a killed driver would leave behind.

A driver that starts a Ray of its own marks its environment, which every process below it inherits, and starts this module as
a process that reads from a pipe. When the driver is gone, however it ended, the pipe closes, what still carries the
mark is killed, and the directory of that Ray is removed. Ray's own processes notice a dead parent too, but its agents may take
minutes over it.
"""

import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import psutil

from actors.import_path import module_command, module_environment
from deploy.run.signals import SIGNALS

MARK = "BVBLEND_DRIVER"


def start_watchdog(directory: Path) -> "subprocess.Popen[bytes]":
    """Mark this process and everything that it starts from now on; `directory` goes with the last of them.

    Keep the result: the pipe closes with it.
    """
    os.environ[MARK] = uuid.uuid4().hex
    # A session of its own: Ctrl-C in a terminal must end the driver first.
    return subprocess.Popen(
        module_command("deploy.run.watchdog", os.environ[MARK], str(directory)),
        stdin=subprocess.PIPE,
        env=module_environment(),
        start_new_session=True,
    )


def marked_processes(name: str, value: str) -> dict[int, str]:
    """Running processes that were started with this environment variable, with their command lines; no zombies."""
    return {
        process.pid: " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["environ", "cmdline"])  # None of processes that are not ours
        if (process.info["environ"] or {}).get(name) == value and process.info["cmdline"]
    }


def main(mark: str, directory: Path) -> None:
    """Consumes: nothing. Waits for: the end of the driver. Ends: when nothing marked is left but itself."""
    for number in SIGNALS:  # whoever sends one to all processes of a run means the driver
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    while victims := marked_processes(MARK, mark).keys() - {os.getpid()}:
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended by itself
    shutil.rmtree(directory, ignore_errors=True)  # a later run may have swept it already


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
