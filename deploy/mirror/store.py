"""A place for copies of runs: any file system that fsspec knows, with names below one URI."""

import uuid
from pathlib import Path

PARTIAL = ".partial"


class MirrorStore:
    """What stands below a URI, by name; names have slashes on every system."""

    def __init__(self, uri: str) -> None:
        """Raises what the backend raises where it cannot be reached."""
        import fsspec  # late: a run without a mirror has no use for it

        self.uri = uri
        # Of its own, and without remembered listings: whoever looks at the same place in this process would put into them what
        # stood there a moment ago, and a move would miss the file that it has just written.
        self._system, root = fsspec.core.url_to_fs(uri, use_listings_cache=False, skip_instance_cache=True)
        self._root = root.rstrip("/")

    def refuse_unwritable(self) -> None:
        """Write and remove a small file. Raises what the backend raises."""
        name = f".bvblend-{uuid.uuid4().hex}"
        self._make_parent(name)
        self._system.pipe_file(self._path(name), b"bvblend")
        self._system.rm_file(self._path(name))

    def sizes(self) -> dict[str, int]:
        """Size in bytes of everything that is there, by name."""
        self._system.invalidate_cache()
        found = self._system.find(self._root, detail=True)
        return {path.removeprefix(self._root).lstrip("/"): int(about["size"]) for path, about in found.items()}

    def put(self, local: Path, name: str) -> None:
        """Upload a file: under a temporary name, then moved, so that a name never stands for half a file."""
        partial = self._path(name + PARTIAL)
        self._make_parent(name)
        self._system.put_file(str(local), partial)
        self._system.mv(partial, self._path(name))

    def remove(self, name: str) -> None:
        self._system.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _make_parent(self, name: str) -> None:
        self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
