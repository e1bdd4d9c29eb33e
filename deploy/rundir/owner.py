"""One owner at a time: which process runs a run directory, and whether it still lives.

The owner holds a lock that the kernel drops with its process, and writes a beat into `owner.json` every few seconds, for
hosts that the lock does not reach: file systems without locks between hosts, containers, readers of a dashboard.
"""

import contextlib
import fcntl
import os
import socket
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import psutil

from deploy.config.recipe import ConfigError
from deploy.rundir.lines import read_object
from moments_service.durable import strict_json

OWNER_FILE = "owner.json"
LOCK_FILE = "owner.lock"
OWNER_FILES = (OWNER_FILE, LOCK_FILE)
"""They mean nothing in a copy of the directory."""
BEAT_S = 3.0
DEAD_AFTER_S = 15.0
"""An owner on another host that has not beaten for so long is taken for dead."""
LOST_EXIT_CODE = 4


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that runs a run, or ran it last."""

    token: str
    """Of this ownership alone."""
    pid: int
    host: str
    place: str
    """Where that pid means something: one boot of one machine, and one namespace of processes in it."""
    begun: float
    """When the process began, in seconds since 1970, as its own machine counts."""
    started: float
    """When it became the owner, likewise."""

    @property
    def here(self) -> bool:
        """Whether it is, or was, a process that can be looked for from here."""
        return self.place == _place()

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.started).strftime("%Y-%m-%d %H:%M:%S")
        return f"process {self.pid} on {self.host} since {since}"


@dataclass(frozen=True, slots=True)
class SeenOwner:
    """An owner as it was found by who looked."""

    owner: Owner
    alive: bool
    silent_s: float
    """Since its last beat, in seconds, by the clocks of the file system and of this machine."""


def read_owner(directory: Path) -> SeenOwner | None:
    """Who runs the run in a directory, or ran it until it was killed; None where nobody does since the last one ended in order."""
    return _seen(directory, time.time())


class RunOwner:
    """Owner of one run directory for as long as the block lasts. Use `acquire`.

    Consumes: nothing. Waits for: the next beat. Ends: with the block, or with the whole process where another owner has
    taken the run over, because two would destroy each other's files.
    """

    def __init__(self, directory: Path, lock: int, owner: Owner) -> None:
        self._directory = directory
        self._lock = lock
        self._owner = owner
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="run-owner", daemon=True)

    @classmethod
    def acquire(cls, directory: Path, take_over: bool = False) -> Self:
        """Become the owner. Raises ConfigError, which names it, where there is another one that lives or may live.

        One on another host that fell silent just now is waited for, until it beats again or counts as dead.

        take_over: an owner that cannot be seen from here is dead, somebody knows. One that is seen to live is never pushed out.
        """
        try:
            lock = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"{directory} cannot be written to: {error.strerror}") from None
        try:
            os.utime(lock)  # now, by the clock that dates the beats
            seen = _seen(directory, os.fstat(lock).st_mtime)
            if seen is not None and seen.alive and not seen.owner.here and not take_over:
                seen = _after_next_beat(directory, seen)
            if seen is not None and seen.alive and (seen.owner.here or not take_over):
                raise ConfigError(_refusal(directory, seen))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not take_over or seen is None or seen.owner.here:
                    raise ConfigError(_refusal(directory, _seen(directory, time.time()))) from None
                (directory / LOCK_FILE).unlink()
                return cls.acquire(directory, take_over)
            except OSError:
                pass  # no locks on this file system: the beat alone has to do
            owner = cls(directory, lock, _this_process())
            owner._write()
            owner._beating.start()
        except BaseException:
            os.close(lock)
            raise
        return owner

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beating.join()
        if self._is_mine():
            with contextlib.suppress(OSError):
                (self._directory / OWNER_FILE).unlink()
        os.close(self._lock)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            if not self._is_mine():
                seen = _seen(self._directory, time.time())
                by = "nobody that can be seen" if seen is None else str(seen.owner)
                print(f"{self._directory} was taken over by {by}; this process ends", file=sys.stderr, flush=True)
                os._exit(LOST_EXIT_CODE)
            # A full disk is no reason to end: whoever starts on this host still sees the lock.
            with contextlib.suppress(OSError):
                os.utime(self._directory / OWNER_FILE)

    def _is_mine(self) -> bool:
        """Whether the file names this ownership; where it cannot be read at all nobody else was seen to take it."""
        found = read_object(self._directory / OWNER_FILE)
        return not found or found.get("token") == self._owner.token

    def _write(self) -> None:
        # Not synchronised: after a power cut no owner is left.
        partial = self._directory / f".{OWNER_FILE}.{self._owner.token}"
        partial.write_text(strict_json(asdict(self._owner)), encoding="utf-8")
        partial.replace(self._directory / OWNER_FILE)


def _refusal(directory: Path, seen: SeenOwner | None) -> str:
    if seen is None:
        return f"{directory} is just being started by another process; wait until that one has ended"
    if seen.owner.here:
        return f"{directory} is run by {seen.owner}; wait until it ends, or stop it: kill {seen.owner.pid}"
    return (
        f"{directory} is run by {seen.owner}, which gave a sign of life {max(seen.silent_s, 0.0):.0f} s ago; stop it there. If it "
        "surely is dead, add --take-over"
    )


def _seen(directory: Path, now: float) -> SeenOwner | None:
    owner = _parsed(read_object(directory / OWNER_FILE))
    if owner is None:
        return None
    try:
        silent_s = now - (directory / OWNER_FILE).stat().st_mtime
    except FileNotFoundError:
        return None
    return SeenOwner(owner, _lives(owner) if owner.here else silent_s < DEAD_AFTER_S, silent_s)


def _after_next_beat(directory: Path, seen: SeenOwner) -> SeenOwner | None:
    """The owner after its next sign of life, or as dead."""
    last = time.time() - seen.silent_s
    left_s = max(DEAD_AFTER_S - seen.silent_s, 0.0)
    deadline = time.monotonic() + left_s
    while time.monotonic() < deadline:
        time.sleep(0.1)
        again = _seen(directory, time.time())
        if again is None or again.owner != seen.owner or time.time() - again.silent_s > last + 0.5:
            return again
    return replace(seen, alive=False)


def _parsed(row: dict[str, Any]) -> Owner | None:
    kinds = {field.name: (str if field.type is str else (int, float)) for field in fields(Owner)}
    if not all(isinstance(row.get(name), kind) for name, kind in kinds.items()):
        return None
    return Owner(**{name: row[name] for name in kinds})


def _lives(owner: Owner) -> bool:
    try:
        process = psutil.Process(owner.pid)
        # The clock that dates processes may have been set in between; a pid is not used again within seconds.
        return abs(process.create_time() - owner.begun) < 5.0 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # or it never was the number of one
        return False


def _this_process() -> Owner:
    begun = psutil.Process().create_time()
    return Owner(uuid.uuid4().hex, os.getpid(), socket.gethostname(), _place(), begun, time.time())


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    boot_id = boot.read_text(encoding="ascii").strip() if boot.exists() else f"{psutil.boot_time():.0f}"
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot_id} {namespace.stat().st_ino if namespace.exists() else ''}".strip()
