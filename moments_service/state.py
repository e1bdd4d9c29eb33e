"""Everything that a commit changes, and nothing else: what a snapshot saves and a replay makes again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from moments_service.clusters import Clusters, Transfer
from moments_service.config import MomentsConfig
from moments_service.durable import strict_json, write_tensors
from moments_service.estimators import Advantages, RememberingEstimator, RewardBatch
from moments_service.health import Alarm, HealthMonitor
from moments_service.messages.counts import Counts
from moments_service.messages.table import GroupTable
from moments_service.moments import CommittedRewards, History, Indices, TrackedMeans
from moments_service.moments.outcomes import Outcomes, outcomes_of

if TYPE_CHECKING:
    from moments_service.ledger.seals import LedgerEnd

MOMENTS_FILE = "moments.safetensors"


@dataclass(frozen=True, slots=True)
class SnapshotOrigin:
    """What a snapshot belongs to: moments mean nothing without the clusters that they are of."""

    codebook: str
    estimator: str
    last_step: int
    incarnation: int
    counts: Counts = field(default_factory=Counts)
    """Of this incarnation."""
    counts_before: Counts = field(default_factory=Counts)
    """Of the earlier incarnations that it goes on from."""
    ledger: LedgerEnd | None = None
    """The newest transaction on the disk; None where there is no ledger."""


class MomentsState:
    """The moments of every cluster and the estimator's own memory. Plain, in memory, one owner."""

    def __init__(self, config: MomentsConfig, clusters: int) -> None:
        self.config = config
        self.moments = config.create_moments(clusters)
        self.estimator = config.estimator.create()
        self.health = HealthMonitor(clusters, config.health.threshold)
        self.last_step = -1
        self.outcomes: Outcomes | None = None
        # Who stands for each cluster: groups may come for one that was split or retired after they were submitted.
        self.heirs: Indices = np.arange(clusters)

    def grow(self, clusters: int) -> None:
        """Make room for clusters up to this number."""
        self.moments.grow(clusters)
        self.health.grow(clusters)
        self.heirs = np.append(self.heirs, np.arange(len(self.heirs), clusters))

    def change_clusters(self, clusters: Clusters, transfers: Sequence[Transfer]) -> None:
        """Go on with another version of the clusters; what `transfers` say moves, and nothing is lost."""
        self.moments.grow(len(clusters))
        self.health.grow(len(clusters))
        for move in transfers:
            self.moments.transfer(move.source, move.target, move.share)
            self.health.transfer(move.source, move.target, move.share)
        self.know(clusters)

    def know(self, clusters: Clusters) -> None:
        """Take in what a version of the clusters says of them: who stands for whom, and who is like whom."""
        self.heirs = clusters.heirs
        if isinstance(self.moments, TrackedMeans):
            self.moments.relate(clusters.kinship())

    def history(self, clusters: Indices) -> History:
        """Moments of the given clusters, [M] rows."""
        return self.moments.history(self.heirs[clusters])

    def reward_batch(self, table: GroupTable, clusters: Indices) -> RewardBatch:
        """What the estimator sees of these groups. clusters: [M]."""
        clusters = self.heirs[clusters]
        return RewardBatch(
            table.rewards,
            table.lengths.astype(np.float64),
            table.prompt_ids,
            self.moments.history(clusters),
            clusters=clusters,
            born=table.policy_versions[:, 0],
            sizes=table.sizes,
        )

    def estimate(self, batch: RewardBatch) -> Advantages:
        """Advantages of a batch from the state as it is; changes nothing."""
        return self.estimator(batch)

    def fold(self, step: int, committed: CommittedRewards) -> None:
        """Take the batch of `step` in."""
        clusters = self.heirs[committed.clusters]
        committed = replace(committed, clusters=clusters, history=self.moments.history(clusters))
        self.health.fold(committed)
        self.moments.fold(committed)
        if isinstance(self.estimator, RememberingEstimator):
            self.estimator.fold(committed)
        self.last_step, self.outcomes = step, outcomes_of(step, committed)

    def alarms(self, batch: CommittedRewards) -> tuple[Alarm, ...]:
        """What looks broken in a batch that is not history yet; changes nothing."""
        if batch.lengths is None or not len(batch.clusters):
            return ()
        return self.health.alarms(self.health.observe(self.heirs[batch.clusters], batch.rewards, batch.lengths))

    def cluster_stats(self) -> dict[str, list[Any]]:
        """mean, variance, mass, weight (the trust in history) and seen of every cluster, K each."""
        history = self.moments.history(np.arange(len(self.moments)))
        nothing = np.full((len(self.moments), 1), np.nan)
        unknown = RewardBatch(nothing, np.zeros_like(nothing), ("",) * len(nothing), history, np.arange(len(nothing)))
        return {
            "mean": history.mean.tolist(),
            "variance": history.variance.tolist(),
            "mass": history.mass.tolist(),
            "weight": self.estimate(unknown).weight.tolist(),
            "seen": history.seen.tolist(),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The whole state as named arrays: `moments/...`, `health/...`, and `estimator/...` if it remembers anything."""
        arrays = {f"moments/{name}": array for name, array in self.moments.state().items()}
        arrays |= {f"health/{name}": array for name, array in self.health.state().items()}
        if isinstance(self.estimator, RememberingEstimator):
            arrays |= {f"estimator/{name}": array for name, array in self.estimator.state().items()}
        return arrays

    def save(self, directory: Path, origin: SnapshotOrigin) -> None:
        """Write moments.safetensors into an existing directory, durably."""
        write_tensors(directory / MOMENTS_FILE, self.arrays(), {"origin": strict_json(asdict(origin))})

    def load(self, directory: Path) -> SnapshotOrigin:
        """Go on from what `save` wrote. Raises ValueError if it does not fit."""
        path, origin = directory / MOMENTS_FILE, read_origin(directory)
        self._take(load_file(path), origin.estimator, str(path))
        self.last_step = origin.last_step
        return origin

    def under(self, config: MomentsConfig) -> MomentsState:
        """The same state as a start of the run under another configuration goes on with it. Raises ValueError if it cannot."""
        other = MomentsState(config, len(self.moments))
        other._take(self.arrays(), self.config.estimator.kind, "the state before")
        other.heirs, other.last_step = self.heirs, self.last_step
        if isinstance(self.moments, TrackedMeans) and isinstance(other.moments, TrackedMeans):
            other.moments.relate(self.moments.kinship)
        return other

    def _take(self, arrays: Mapping[str, np.ndarray], estimator: str, where: str) -> None:
        parts: dict[str, dict[str, np.ndarray]] = {"moments": {}, "health": {}, "estimator": {}}
        for name, array in arrays.items():
            part, _, key = name.partition("/")
            parts[part][key] = array
        self.moments.load_state(parts["moments"])
        self.health.load_state(parts["health"])
        if isinstance(self.estimator, RememberingEstimator):
            if estimator != self.config.estimator.kind:
                raise ValueError(
                    f"{where} was saved by estimator {estimator}; {self.config.estimator.kind} needs a memory of its own"
                )
            self.estimator.load_state(parts["estimator"])


def read_origin(directory: Path) -> SnapshotOrigin:
    """What the snapshot in a directory belongs to. Raises FileNotFoundError or SafetensorError where there is none."""
    # Late: moments are also used where there is no ledger, nor what it is written with.
    from moments_service.ledger.seals import LedgerEnd

    with safe_open(directory / MOMENTS_FILE, framework="numpy") as file:
        about = json.loads(file.metadata()["origin"])
    counts, before = Counts(**about.pop("counts")), Counts(**about.pop("counts_before"))
    end = about.pop("ledger")
    return SnapshotOrigin(
        **about, counts=counts, counts_before=before, ledger=None if end is None else LedgerEnd(**end)
    )
