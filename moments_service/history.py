"""What a run knows: its clusters and the state of their moments; how both come back from a snapshot and the ledger."""

import json
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from moments_service.clusters import Clusters, Transfer, load_clusters
from moments_service.clusters.versions import ClusterVersions
from moments_service.config import MomentsConfig
from moments_service.ledger import LedgerReader
from moments_service.offline.portable import CODEBOOK_FILE, WarmStart
from moments_service.state import MomentsState, SnapshotOrigin


class RunHistory:
    """What a run knows: its clusters, and the state of their moments. Both are None before the first clusters.

    directory: where the ledger and every version of the clusters live.
    """

    def __init__(self, config: MomentsConfig, directory: Path) -> None:
        self._config = config
        self._directory = directory
        self.clusters: Clusters | None = None
        self.state: MomentsState | None = None

    def take(self, clusters: Clusters, transfers: Sequence[Transfer]) -> None:
        """Go on with another version of the clusters. The first ones begin with what the run was warm-started from."""
        if self.state is None:
            self.state = MomentsState(self._config, len(clusters))
            if warm := WarmStart.of_run(self._directory):
                warm.fill(self.state.moments)
        self.state.change_clusters(clusters, transfers)
        self.clusters = clusters

    def replay(
        self,
        reader: LedgerReader,
        incarnation: int,
        first_step: int = 0,
        last_step: int = 2**62,
        folded: Callable[[], object] = lambda: None,
    ) -> None:
        """Do again what an incarnation committed in these steps, and how its clusters changed in between.

        folded: called after every commit. Where the ledger knows the configuration that the incarnation ran with, it counts.
        """
        self._go_on_under(configured(reader, incarnation, self._config))
        versions = ClusterVersions(self._directory, incarnation)
        changes = deque(versions.records())

        def change_before(step: int) -> None:
            while changes and changes[0].after_step < step:
                record = changes.popleft()
                self.take(load_clusters(versions.path(record.version)), record.transfers)

        for commit in reader.commits(incarnation, first_step, last_step):
            change_before(commit.step)
            assert self.state is not None
            self.state.fold(commit.step, commit.committed)
            folded()
        change_before(last_step + 1)

    def _go_on_under(self, config: MomentsConfig) -> None:
        if self.state is not None and self.state.config != config:
            self.state = self.state.under(config)
        self._config = config

    def restore(self, snapshot: Path) -> SnapshotOrigin:
        """Go on from a snapshot. Raises ValueError where it does not fit the configuration, or its parts each other."""
        clusters = load_clusters(snapshot / CODEBOOK_FILE)
        state = MomentsState(self._config, len(clusters))
        state.know(clusters)
        origin = state.load(snapshot)
        if origin.codebook != clusters.fingerprint:
            raise ValueError(f"snapshot {snapshot} is mixed up: its moments belong to codebook {origin.codebook}")
        self.clusters, self.state = clusters, state
        return origin


def configured(reader: LedgerReader, incarnation: int, fallback: MomentsConfig) -> MomentsConfig:
    """What an incarnation ran with, as its ledger says; `fallback` where an older version wrote it, and said nothing."""
    text = reader.configs().get(incarnation)
    return fallback if text is None else MomentsConfig.model_validate(json.loads(text)["moments"])
