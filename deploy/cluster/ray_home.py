"""The directory of a Ray of our own: sockets, logs, spilled objects and its token. It ends with the run.

One process owns it by a lock that the kernel drops when that process ends, however it ends. The watchdog removes it then; what a
power cut or a killed watchdog left goes at the start of a later run.
"""

import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from actors.redaction import redacted
from deploy.cluster.environment import EnvironmentProblemError

PREFIX = "bvblend-"
SOCKET_PATH = 107
"""Bytes that the name of a Unix socket may have."""
BELOW = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""What Ray adds to its directory for the longest of its sockets."""
LOG_BYTES = 2**16
"""That are kept of each log; its end says what happened last."""
_LOCK, _TOKEN = "owner.lock", "token"


class RayHome:
    """Keep it for as long as Ray runs: the lock ends with it."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls) -> "RayHome":
        """A new one, readable by this user only. Raises EnvironmentProblemError where there is no room for it, with the remedy."""
        below = base()
        sweep(below)
        try:
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=below))
        except OSError as error:
            raise EnvironmentProblemError(
                f"Ray's files cannot be written below {below}: {error.strerror}; name another directory by RAY_TMPDIR"
            ) from None
        # Locked before it has its name: a lock that nobody holds says that its owner is dead.
        unnamed = path / f"{_LOCK}.new"
        lock = unnamed.open("w", encoding="utf-8")
        fcntl.flock(lock, fcntl.LOCK_EX)
        unnamed.rename(path / _LOCK)
        return cls(path, lock)

    def write_token(self) -> Path:
        """A token that is made for this Ray alone: nothing is read from or written to the user's home."""
        path = self.path / _TOKEN
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32))
        return path

    def keep_logs(self, into: Path) -> None:
        """Copy the ends of what Ray and its workers wrote, without secrets: after a failure, before they go."""
        into.mkdir(exist_ok=True)
        for kind in ("worker-", "raylet.", "gcs_server."):
            for log in self.path.glob(f"session_2*/logs/{kind}*"):
                with log.open("rb") as file:
                    file.seek(max(0, log.stat().st_size - LOG_BYTES))
                    text = redacted(file.read().decode(errors="replace"))
                if text:
                    (into / log.name).write_text(text, encoding="utf-8")


def homes(below: Path) -> Iterator[Path]:
    """Directories that this user's runs made for Ray."""
    for path in below.glob(f"{PREFIX}*"):
        about = path.lstat()
        if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid():
            yield path


def sweep(below: Path) -> list[Path]:
    """Remove the directories whose owners are dead; returns them. One without a lock is being made, or not ours."""
    removed = []
    for path in list(homes(below)):
        try:
            lock = (path / _LOCK).open("r+", encoding="utf-8")
        except FileNotFoundError:
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(path, ignore_errors=True)  # another run may sweep it at the same time
            removed.append(path)
    return removed


def keep_token_private() -> None:
    """Ray writes the token that all clusters of a user share readable for everybody."""
    token = Path.home() / ".ray" / "auth_token"
    try:
        mode = token.stat().st_mode
        if mode & 0o077:
            token.chmod(stat.S_IMODE(mode) & 0o700)
    except OSError:
        return  # there is none, or the home is not ours to change


def base() -> Path:
    """Where Ray's files go: RAY_TMPDIR, else TMPDIR, or /tmp where the names of sockets below that would be too long."""
    room = SOCKET_PATH - BELOW - len(f"/{PREFIX}xxxxxxxx")
    named = os.environ.get("RAY_TMPDIR")
    wanted = named or tempfile.gettempdir()
    if len(os.fsencode(wanted)) <= room:
        return Path(wanted)
    if named:
        raise EnvironmentProblemError(
            f"RAY_TMPDIR={named} is {len(os.fsencode(named))} bytes long, and the names of Ray's sockets below it would be longer "
            f"than the {SOCKET_PATH} bytes that they may have: name a directory of at most {room}"
        )
    return Path("/tmp")
