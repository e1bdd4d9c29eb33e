"""Every version of a run's clusters on disk, and the log of when each came into force."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open

from moments_service.clusters.base import Clusters, Transfer
from moments_service.durable import DamagedFileError, append_line, strict_json

LOG_FILE = "clusters.jsonl"
_VERSION = re.compile(r"codebook-[0-9]{3,}\.safetensors")


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """From the first commit after `after_step` on, the clusters are those of file `version`."""

    incarnation: int
    after_step: int
    version: str
    fingerprint: str
    transfers: tuple[Transfer, ...] = ()


class ClusterVersions:
    """Writer and reader of `codebook-000.safetensors`, `codebook-001…` and `clusters.jsonl` in one directory.

    A file is never changed once written. A change counts from when its line is whole; files without a line never took
    effect. The version in force is the one that the last line names.
    """

    def __init__(self, directory: Path, incarnation: int) -> None:
        self._directory = directory
        self._incarnation = incarnation
        self._log = directory / LOG_FILE

    def record(self, clusters: Clusters, after_step: int, transfers: tuple[Transfer, ...] = ()) -> ClusterRecord:
        """Write a version (unless it is here already) and its line. Returns when both are on the disk."""
        version = self._write(clusters)
        record = ClusterRecord(self._incarnation, after_step, version, clusters.fingerprint, transfers)
        append_line(self._log, strict_json(asdict(record)).encode())
        return record

    def records(self) -> list[ClusterRecord]:
        """The lines of this incarnation in order."""
        return [record for record in self.all_records() if record.incarnation == self._incarnation]

    def all_records(self) -> list[ClusterRecord]:
        """Every line in order."""
        found = []
        for number, line in enumerate(self._whole_lines().splitlines(), 1):
            try:
                row = json.loads(line)
                found.append(ClusterRecord(**row | {"transfers": tuple(Transfer(**move) for move in row["transfers"])}))
            except (ValueError, TypeError, KeyError) as error:
                raise DamagedFileError(f"{self._log}, line {number}: no version of the clusters ({error})") from None
        return found

    def path(self, version: str) -> Path:
        return self._directory / version

    def in_force(self) -> Path | None:
        """File of the newest version that took effect."""
        records = self.all_records()
        return self.path(records[-1].version) if records else None

    def last_incarnation(self) -> int:
        """The newest start of the run that got as far as having clusters; -1 for none."""
        return max((record.incarnation for record in self.all_records()), default=-1)

    def _write(self, clusters: Clusters) -> str:
        files = sorted(path for path in self._directory.iterdir() if _VERSION.fullmatch(path.name))
        for path in files:
            with safe_open(path, framework="numpy") as file:
                if (file.metadata() or {}).get("fingerprint") == clusters.fingerprint:
                    return path.name
        number = 1 + max((int(path.stem.removeprefix("codebook-")) for path in files), default=-1)
        path = self._directory / f"codebook-{number:03d}.safetensors"
        clusters.save(path)
        return path.name

    def _whole_lines(self) -> bytes:
        text = self._log.read_bytes() if self._log.exists() else b""
        return text[: text.rfind(b"\n") + 1]
