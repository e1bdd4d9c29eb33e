"""Moments that leave their run: written, read, discounted, merged, compared, and taken up by another run."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from moments_service.clusters import Clusters, load_clusters, refuse_other_clusters
from moments_service.config import BlendConfig, MomentsConfig
from moments_service.durable import verify_directory, whole_directory, write_json, write_tensors
from moments_service.messages.counts import Counts
from moments_service.moments import ClusterMoments
from moments_service.moments.create import MomentsKind, create_moments
from moments_service.state import MOMENTS_FILE, MomentsState

CODEBOOK_FILE = "codebook.safetensors"
ABOUT_FILE = "about.json"
WARM_START = "warm_start"


@dataclass(frozen=True, slots=True)
class About:
    """Where portable moments come from, as about.json says it."""

    moments: MomentsKind
    blend: BlendConfig
    estimator: str
    encoder: str
    codebook: str
    """Fingerprints of what embedded the prompts and of the clusters."""
    policy: str
    run: str
    steps: int
    """Policy steps that they were gathered in."""
    discount: float = 1.0
    """Share of the original mass that is left."""
    counts: Counts = field(default_factory=Counts)


@dataclass(frozen=True, slots=True)
class PortableMoments:
    """Moments, the clusters that they are of, and where they come from. The moments stand as of their newest version."""

    clusters: Clusters
    moments: ClusterMoments
    about: About

    @classmethod
    def from_snapshot(cls, snapshot: Path, config: MomentsConfig, policy: str, run: str) -> "PortableMoments":
        """What a snapshot of a run holds. Raises ValueError if it is not one of that configuration."""
        if not (snapshot / MOMENTS_FILE).exists():
            raise ValueError(f"{snapshot} is no snapshot of moments (no {MOMENTS_FILE} in it)")
        clusters = load_clusters(snapshot / CODEBOOK_FILE)
        state = MomentsState(config, len(clusters))
        origin = state.load(snapshot)
        portable = cls.from_state(state, clusters, origin.counts, policy, run)
        return replace(portable, about=replace(portable.about, codebook=origin.codebook))._checked(str(snapshot))

    @classmethod
    def from_state(
        cls, state: MomentsState, clusters: Clusters, counts: Counts, policy: str, run: str
    ) -> "PortableMoments":
        """The moments of a state, which they are taken out of; nobody goes on with it."""
        config = state.config
        state.moments.carry_over(1.0)
        about = About(
            moments=config.moments_kind,
            blend=config.blend,
            estimator=config.estimator.kind,
            encoder=clusters.encoder,
            codebook=clusters.fingerprint,
            policy=policy,
            run=run,
            steps=state.last_step + 1,
            counts=counts,
        )
        return cls(clusters, state.moments, about)

    @classmethod
    def read(cls, directory: Path) -> "PortableMoments":
        """Read what `write` wrote. Raises ValueError if it is not that, or if its parts do not belong together."""
        try:
            raw = json.loads((directory / ABOUT_FILE).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{directory} holds no exported moments ({error}); make some: bvblend moments export"
            ) from None
        verify_directory(directory)
        blend, counts = BlendConfig(**raw.pop("blend")), Counts(**raw.pop("counts"))
        about = About(**raw, blend=blend, counts=counts)
        clusters = load_clusters(directory / CODEBOOK_FILE)
        moments = create_moments(about.moments, blend, len(clusters))
        try:
            moments.load_state(load_file(directory / MOMENTS_FILE))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{directory / MOMENTS_FILE} cannot be read: {error}") from None
        return cls(clusters, moments, about)._checked(str(directory))

    def write(self, directory: Path) -> None:
        """Write a new directory, whole or not at all. Raises ValueError if there is one of that name."""
        if directory.exists():
            raise ValueError(f"{directory} exists already; name another")
        raw = asdict(self.about) | {"blend": self.about.blend.model_dump(mode="json")}
        with whole_directory(directory) as partial:
            write_tensors(partial / MOMENTS_FILE, self.moments.state(), {})
            self.clusters.save(partial / CODEBOOK_FILE)
            write_json(partial / ABOUT_FILE, raw, indent=1)

    def discounted(self, discount: float) -> "PortableMoments":
        """A copy with `discount` in (0, 1] of the mass: means and variances as they are, trusted less."""
        if not 0.0 < discount <= 1.0:
            raise ValueError(f"discount {discount:g} is not in (0, 1]; it is the share of the mass that is kept")
        moments = create_moments(self.about.moments, self.about.blend, len(self.clusters))
        moments.load_state(self.moments.state())
        moments.carry_over(discount)
        return PortableMoments(self.clusters, moments, replace(self.about, discount=self.about.discount * discount))

    def _checked(self, where: str) -> "PortableMoments":
        if self.clusters.fingerprint != self.about.codebook:
            raise ValueError(
                f"{where} is mixed up: its moments belong to codebook {self.about.codebook}, "
                f"and the codebook beside them is {self.clusters.fingerprint}"
            )
        return self


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What a new run begins with: clusters, and moments of them if it has any."""

    clusters: Clusters
    portable: PortableMoments | None = None

    @classmethod
    def of_run(cls, directory: Path) -> "WarmStart | None":
        """What `place` left in a run's moments directory; None where nothing was placed."""
        placed = directory / WARM_START
        if not placed.exists():
            return None
        if (placed / ABOUT_FILE).exists():
            portable = PortableMoments.read(placed)
            return cls(portable.clusters, portable)
        return cls(load_clusters(placed / CODEBOOK_FILE))

    def place(self, directory: Path) -> None:
        """Leave it in the moments directory of a run that has not started; every start from scratch takes it up."""
        if self.portable is not None:
            self.portable.write(directory / WARM_START)
            return
        with whole_directory(directory / WARM_START) as partial:
            self.clusters.save(partial / CODEBOOK_FILE)

    def refuse_misfit(self, config: MomentsConfig, encoder: str) -> None:
        """Raise ValueError if a run of this configuration and encoder cannot begin with it."""
        refuse_other_clusters(self.clusters, config.clusters.by, encoder)
        if self.portable is not None and self.portable.about.moments != config.moments_kind:
            variant = f":{config.blend.variant}" if config.estimator.kind == config.blend.kind else ""
            raise ValueError(
                f"these moments are of kind {self.portable.about.moments}, and moments.estimator "
                f"{config.estimator.kind}{variant} keeps kind {config.moments_kind}"
            )

    def fill(self, moments: ClusterMoments) -> None:
        """Put the moments into those of the new run, which are empty and of as many clusters."""
        if self.portable is not None:
            moments.load_state(self.portable.moments.state())


@dataclass(frozen=True, slots=True)
class ClusterDifference:
    """How two sets of moments see one cluster."""

    cluster: int
    means: tuple[float, float]
    masses: tuple[float, float]

    @property
    def score(self) -> float:
        """|difference of means| * sqrt(the smaller mass): how sure it is that they differ, in reward units."""
        return abs(self.means[0] - self.means[1]) * float(np.sqrt(min(self.masses)))


def merge(first: PortableMoments, second: PortableMoments) -> PortableMoments:
    """Both together: counts add up; the paper's moments are averaged by mass. Raises ValueError if they do not match."""
    _refuse_other_codebook(first, second)
    moments = create_moments(first.about.moments, first.about.blend, len(first.clusters))
    moments.absorb(first.moments)
    moments.absorb(second.moments)
    about = replace(
        first.about,
        run=f"{first.about.run} + {second.about.run}",
        policy=first.about.policy if first.about.policy == second.about.policy else "several",
        steps=max(first.about.steps, second.about.steps),
        discount=1.0,
        counts=first.about.counts + second.about.counts,
    )
    return PortableMoments(first.clusters, moments, about)


def differences(first: PortableMoments, second: PortableMoments) -> list[ClusterDifference]:
    """Every cluster that either has seen, those that differ most first. Raises ValueError for two codebooks."""
    _refuse_other_codebook(first, second)
    every = np.arange(len(first.clusters))
    one, two = first.moments.history(every), second.moments.history(every)
    rows = [
        ClusterDifference(k, (float(one.mean[k]), float(two.mean[k])), (float(one.mass[k]), float(two.mass[k])))
        for k in np.flatnonzero(one.seen | two.seen).tolist()
    ]
    return sorted(rows, key=lambda row: (-row.score, row.cluster))


def _refuse_other_codebook(first: PortableMoments, second: PortableMoments) -> None:
    if first.about.codebook != second.about.codebook:
        raise ValueError(
            f"these moments are of different clusters: codebook {first.about.codebook} ({first.about.run}) and "
            f"{second.about.codebook} ({second.about.run}); cluster 3 of one is not cluster 3 of the other"
        )
    if first.about.moments != second.about.moments:
        raise ValueError(f"these moments are of two kinds: {first.about.moments} and {second.about.moments}")
