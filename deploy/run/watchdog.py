"""Ends what a killed driver would leave behind.

A driver that starts a Ray of its own marks its environment, which every process below it inherits, and starts this module as
a process that reads from a pipe. When the driver is gone, however it ended, the pipe closes, and what still carries the
mark is killed. Ray's own processes notice a dead parent too, but its agents may take minutes over it.
"""

import os
import signal
import subprocess
import sys
import uuid

import psutil

MARK = "BVBLEND_DRIVER"


def start_watchdog() -> "subprocess.Popen[bytes]":
    """Mark this process and everything that it starts from now on. Keep the result: the pipe closes with it."""
    os.environ[MARK] = uuid.uuid4().hex
    # A session of its own: Ctrl-C in a terminal must end the driver first.
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.run.watchdog", os.environ[MARK]], stdin=subprocess.PIPE, start_new_session=True
    )


def marked_processes(name: str, value: str) -> dict[int, str]:
    """Running processes that were started with this environment variable, with their command lines; no zombies."""
    return {
        process.pid: " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["environ", "cmdline"])  # None of processes that are not ours
        if (process.info["environ"] or {}).get(name) == value and process.info["cmdline"]
    }


def main(mark: str) -> None:
    """Consumes: nothing. Waits for: the end of the driver. Ends: when nothing marked is left but itself."""
    sys.stdin.buffer.read()
    while victims := marked_processes(MARK, mark).keys() - {os.getpid()}:
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended by itself


if __name__ == "__main__":
    main(sys.argv[1])
