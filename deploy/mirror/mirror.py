"""The mirror of a run: a copy that grows while the run goes on, somewhere that outlives this machine.

`MIRROR/RUN` looks like the run directory. While the run goes on: the resolved configuration, closed parts of the ledger, the
clusters and the newest checkpoint, each as soon as it is whole, and the lines of metrics with them; at the end all the rest.
"""

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from actors.redaction import redacted
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError
from deploy.mirror.files import CHECKPOINTS, COMPLETE, Bundle, Signature, bundles, growing, readable, signature
from deploy.mirror.store import PARTIAL, MirrorStore
from deploy.rundir.layout import RunDirectory

END_ATTEMPTS = 3
"""How often an upload is tried after the run has ended."""


def refuse_unwritable_mirror(config: RunConfig) -> None:
    """Raise ConfigError where a run has a mirror that nothing can be written to."""
    if config.mirror is None:
        return
    try:
        MirrorStore(config.mirror).refuse_unwritable()
    except Exception as error:  # each backend raises errors of its own kind
        raise ConfigError(
            f"mirror: {config.mirror} cannot be written to ({type(error).__name__}: {error}); name another place or give the "
            "environment the credentials for it"
        ) from None


@asynccontextmanager
async def mirrored(
    config: RunConfig, directory: RunDirectory, note: Callable[[str], None]
) -> AsyncIterator["Mirror | None"]:
    """The mirror of a run from its start to its end; None where the configuration names none."""
    if config.mirror is None:
        yield None
        return
    uri = f"{config.mirror.rstrip('/')}/{directory.path.name}"
    note(redacted(f"a copy of the run goes to {uri}"))
    mirror = Mirror(uri, directory, note)
    try:
        yield mirror
    finally:
        await mirror.close(config.stall_timeout_s)


class Mirror:
    """Uploads from a thread of its own. Made and closed in the event loop of the driver.

    Consumes: calls of `look`, any number at once. Waits for: the next one. Ends: after the last round that `close` asks for.
    What cannot be uploaded is said and tried again in the next round; nothing that happens here stops a run.
    """

    def __init__(self, uri: str, directory: RunDirectory, note: Callable[[str], None]) -> None:
        self._uri = uri
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        # What a backend says may have in it what it was signed with.
        self._note = lambda text: note(redacted(text))
        self._store: MirrorStore | None = None
        # What files were like when the mirror was last looked at: at the start, and whenever one was uploaded.
        self._at_start = {self._name(path): signature(path) for path in directory.path.rglob("*") if path.is_file()}
        self._uploaded: dict[str, Signature | None] = {}
        self._there: set[str] = set()
        self._wake = threading.Event()
        self._closing = self._ended = False
        self._moved = asyncio.Event()
        # A daemon: an upload that hangs must not keep a driver that wants to end.
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()
        self.look()

    def look(self) -> None:
        """There may be something new to upload."""
        self._wake.set()

    async def close(self, stall_s: float) -> None:
        """Upload the rest. Returns when it is there, was given up, or nothing has moved for `stall_s` seconds."""
        self._closing = True
        self._note(f"uploading the rest of the run to {self._uri}")
        self.look()
        while not self._ended:
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), stall_s)
            except TimeoutError:
                self._note(f"mirror: nothing was uploaded for {stall_s:g} s (stall_timeout_s); the rest is left undone")
                return

    def give_up(self) -> None:
        """End `close`, if it is under way; what is not uploaded by then is not uploaded."""
        if self._closing:
            self._note(f"mirror: {self._uri} is left as it is")
            self._ended = True
            self._moved.set()

    def _work(self) -> None:
        try:
            while not self._closing:
                self._wake.wait()
                self._wake.clear()
                if not self._closing:
                    self._round(at_end=False)
                    self._tell(self._moved.set)
            if not any(self._round(at_end=True) for _ in range(END_ATTEMPTS)):
                self._say(f"mirror: {self._uri} is not complete; copy {self._directory.path} there, or resume the run")
        finally:
            self._ended = True
            self._tell(self._moved.set)

    def _round(self, at_end: bool) -> bool:
        """Upload what is new. Returns whether all of it is there now."""
        failures: list[str] = []
        with tempfile.TemporaryDirectory() as scratch:
            try:
                store, new = self._connected(), self._new(at_end)
            except Exception as error:  # each backend raises errors of its own kind
                self._say(f"mirror: {self._uri} cannot be reached, tried again with the next: {error}")
                return False
            for bundle in new:
                try:
                    self._upload(store, bundle, Path(scratch))
                except Exception as error:
                    if all(path.exists() for path in bundle):  # an old checkpoint may go while it is uploaded
                        failures.append(f"{self._name(bundle[-1])} ({type(error).__name__}: {error})")
        if failures:
            others = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
            self._say(f"mirror: not uploaded to {self._uri}, tried again with the next: {failures[0]}{others}")
        return not failures

    def _connected(self) -> MirrorStore:
        """The store, after the first look at what is there from an earlier start of the run."""
        if self._store is None:
            store = MirrorStore(self._uri)
            for name, size in store.sizes().items():
                if name.endswith(PARTIAL):
                    store.remove(name)
                    continue
                self._there.add(name)
                before = self._at_start.get(name)
                if before is not None and before[0] == size:
                    self._uploaded[name] = before
            self._store = store
        return self._store

    def _new(self, at_end: bool) -> list[Bundle]:
        found = [bundle for bundle in bundles(self._directory, at_end) if any(map(self._is_new, bundle))]
        # Files that grow with every step go along with others.
        return found + (growing(self._directory) if found and not at_end else [])

    def _is_new(self, path: Path) -> bool:
        return signature(path) != self._uploaded.get(self._name(path))

    def _upload(self, store: MirrorStore, bundle: Bundle, scratch: Path) -> None:
        is_checkpoint = bundle[-1].name == COMPLETE
        if is_checkpoint and (last := self._name(bundle[-1])) in self._there:
            self._remove(store, last)
        for path in filter(self._is_new, bundle):
            before = signature(path)
            store.put(readable(path, scratch), name := self._name(path))
            self._there.add(name)
            self._uploaded[name] = before
            self._tell(self._moved.set)
        if is_checkpoint:
            self._remove_old_checkpoints(store)

    def _remove_old_checkpoints(self, store: MirrorStore) -> None:
        """Keep those that the run directory keeps; called when a new one is complete."""
        kept = {f"{CHECKPOINTS}/{path.name}" for path in self._directory.checkpoints.iterdir()}
        old = [
            name
            for name in self._there
            if name.startswith(f"{CHECKPOINTS}/") and "/".join(name.split("/")[:2]) not in kept
        ]
        for name in sorted(old, key=lambda name: (not name.endswith(COMPLETE), name)):
            self._remove(store, name)

    def _remove(self, store: MirrorStore, name: str) -> None:
        store.remove(name)
        self._there.discard(name)
        self._uploaded.pop(name, None)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._directory.path).as_posix()

    def _say(self, text: str) -> None:
        self._tell(self._note, text)

    def _tell(self, callback: Callable[..., object], *arguments: str) -> None:
        if not self._loop.is_closed():  # it is where the driver gave up waiting for an upload
            self._loop.call_soon_threadsafe(callback, *arguments)
