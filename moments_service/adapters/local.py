"""BV-Blend in the process that trains, for loops that are not ours: no service, no Ray, no torch."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moments_service.adapters.clusters import Encoder, NamedClusters, PromptClusters, SemanticClusters
from moments_service.blend import Array
from moments_service.config import MomentsConfig
from moments_service.durable import settle, verify_directory, whole_directory, write_json
from moments_service.estimators import Advantages, RewardBatch
from moments_service.messages.counts import Counts
from moments_service.messages.groups import LARGEST_REWARD, PolicyMove
from moments_service.moments import CommittedRewards, History, Indices
from moments_service.state import MomentsState, SnapshotOrigin

ABOUT_FILE = "local.json"


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A batch whose advantages were given out and whose policy step is not over."""

    clusters: Indices
    rewards: Array
    prompts: tuple[str, ...]


class LocalMoments:
    """The moments of one run, in memory, with one owner. Ask for advantages, take the policy step, commit.

    >>> from moments_service.adapters.local import LocalMoments
    >>> questions = ["What is 2 + 3?", "What is 9 + 4?", "How many legs has a dog?", "How many legs have two hens?"]
    >>> moments = LocalMoments(prompts=questions)        # clusters by meaning, fitted on the prompt set
    >>> batch = moments.advantages(0, questions[:2], rewards=[[1, 0, 0, 1], [0, 0, 0, 1]])
    >>> batch.values.shape                               # what to multiply each completion's loss with
    (2, 4)
    >>> moments.commit(0)                                # after the policy step: these rewards become history
    >>> uniform = moments.advantages(1, questions[:1], rewards=[[0, 0, 0, 0]])
    >>> bool((uniform.values < 0).all())                 # all wrong where half was right: GRPO has no signal here
    True
    >>> moments.commit(1)

    config: estimator and blend as in this project's own runs.    prompts: the prompt set, to fit clusters on; without it
    they are fitted on the first batch.    clusters: other clusters than those by meaning, such as `NamedClusters()`.
    seed: of the clustering.    encoder: other embeddings than the configured ones.

    Advantages come from the state before the batch, and a batch is folded in once, however often it is committed.
    """

    def __init__(
        self,
        config: MomentsConfig | None = None,
        prompts: Iterable[str] = (),
        clusters: PromptClusters | None = None,
        seed: int = 0,
        encoder: Encoder | None = None,
    ) -> None:
        self.config = MomentsConfig() if config is None else config
        self.clusters: PromptClusters = (
            SemanticClusters(self.config.clusters, seed, prompts, encoder) if clusters is None else clusters
        )
        self._seed = seed
        self._state = MomentsState(self.config, len(self.clusters))
        self._counts = Counts()
        # Batches by step, in the order in which they were drawn; `commit` empties it.
        self._drawn: dict[int, _Drawn] = {}

    @property
    def last_step(self) -> int:
        """The last step that was folded in; -1 before the first."""
        return self._state.last_step

    @property
    def next_step(self) -> int:
        """A step that no batch was drawn for."""
        return max(self._state.last_step, *self._drawn, -1) + 1

    def advantages(
        self,
        step: int,
        prompts: Sequence[str],
        rewards: npt.ArrayLike,
        lengths: npt.ArrayLike | None = None,
        labels: Sequence[str] | None = None,
    ) -> Advantages:
        """Advantages of the batch of `step`, kept for `commit`; asked again, the step's batch is the newest one.

        prompts: M texts.    rewards: [M, G], NaN or None for a completion without one.    lengths: [M, G] tokens, 0 past
        the size of a group.    labels: M cluster names instead of the texts.    Returns values [M, G], NaN where there
        is no reward, with the baseline, scale and weight they come from.
        """
        if step <= self.last_step:
            raise RuntimeError(f"step {step} is committed already; the last one is {self.last_step}")
        batch, drawn = self._prepare(prompts, rewards, lengths, labels)
        given = self._state.estimate(batch)
        self._drawn[step] = drawn
        return given

    def preview(
        self,
        prompts: Sequence[str],
        rewards: npt.ArrayLike,
        lengths: npt.ArrayLike | None = None,
        labels: Sequence[str] | None = None,
    ) -> Advantages:
        """Advantages that nothing is remembered of: for evaluation."""
        return self._state.estimate(self._prepare(prompts, rewards, lengths, labels)[0])

    def commit(self, step: int, policy_version: int | None = None, move: PolicyMove | None = None) -> None:
        """Fold in every batch drawn up to `step`, after its policy step; a step that is committed already changes nothing.

        policy_version: counts policy steps, and history fades by it; `step` if not given.    move: see `PolicyMove`.
        """
        if step <= self.last_step:
            return
        if step not in self._drawn:
            raise RuntimeError(f"step {step} cannot be committed: no batch was drawn for it")
        for due in sorted(self._drawn):
            if due <= step:
                self._fold(due, self._drawn.pop(due), step if policy_version is None else policy_version, move)
                move = None

    def history(self, names: Sequence[str]) -> History:
        """The moments behind these prompts (or labels), one row each."""
        return self._state.history(self._assign(names))

    def save(self, directory: Path | str) -> None:
        """Write everything into `directory`, replacing what an earlier save left there. Only between batches."""
        if self._drawn:
            raise RuntimeError(f"no save while the batch of step {min(self._drawn)} is not committed")
        origin = SnapshotOrigin(self.clusters.fingerprint, self.config.estimator.kind, self.last_step, 0, self._counts)
        about = {"clusters": type(self.clusters).__name__, "seed": self._seed, "config": self.config.model_dump()}
        with whole_directory(Path(directory)) as partial:
            self.clusters.save(partial)
            self._state.save(partial, origin)
            write_json(partial / ABOUT_FILE, about, indent=1)

    @classmethod
    def load(
        cls, directory: Path | str, config: MomentsConfig | None = None, encoder: Encoder | None = None
    ) -> "LocalMoments":
        """Go on from what `save` wrote. config: replaces the saved one; ValueError if the saved moments do not fit it,
        or are damaged."""
        folder = Path(directory)
        settle(folder)
        verify_directory(folder)
        about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        config = MomentsConfig.model_validate(about["config"]) if config is None else config
        clusters: PromptClusters
        if about["clusters"] == NamedClusters.__name__:
            clusters = NamedClusters.load(folder)
        else:
            clusters = SemanticClusters.load(folder, config.clusters, about["seed"], encoder)
        moments = cls(config, clusters=clusters, seed=about["seed"])
        origin = moments._state.load(folder)
        if origin.codebook != clusters.fingerprint:
            raise ValueError(f"{folder} is mixed up: its moments belong to clusters {origin.codebook}")
        moments._counts = origin.counts
        return moments

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of the whole state by name, to look at or to compare."""
        return self._state.arrays()

    def _prepare(
        self,
        prompts: Sequence[str],
        rewards: npt.ArrayLike,
        lengths: npt.ArrayLike | None,
        labels: Sequence[str] | None,
    ) -> tuple[RewardBatch, _Drawn]:
        table = np.array(rewards, dtype=np.float64)
        if table.ndim != 2 or len(table) != len(prompts) or (labels is not None and len(labels) != len(prompts)):
            raise ValueError(f"{len(prompts)} prompts need as many rows of rewards (and labels), got {table.shape}")
        if (too_large := np.abs(table) > LARGEST_REWARD).any():
            row, place = (int(index) for index in np.argwhere(too_large)[0])
            raise ValueError(
                f"reward {table[row, place]} of completion {place} of prompt {row} is beyond +-{LARGEST_REWARD:g}: "
                "it would be all that a cluster remembers; give NaN where there is no reward"
            )
        names = prompts if labels is None else labels
        drawn = _Drawn(self._assign(names), table, tuple(prompt_id(prompt) for prompt in prompts))
        tokens = np.ones_like(table) if lengths is None else np.array(lengths, dtype=np.float64)
        history = self._state.history(drawn.clusters)
        return RewardBatch(
            table, tokens, drawn.prompts, history, drawn.clusters, sizes=completions(table, tokens)
        ), drawn

    def _assign(self, names: Sequence[str]) -> Indices:
        assigned = self.clusters.assign(names)
        if len(self.clusters) > len(self._state.moments):
            self._state.grow(len(self.clusters))
        return assigned

    def _fold(self, step: int, drawn: _Drawn, policy_version: int, move: PolicyMove | None) -> None:
        self._state.fold(step, CommittedRewards(drawn.clusters, drawn.rewards, drawn.prompts, policy_version, move))
        groups, missing = len(drawn.prompts), int(np.isnan(drawn.rewards).sum())
        self._counts += Counts(groups, drawn.rewards.size, missing, 0, groups)


def completions(rewards: Array, lengths: Array) -> Indices:
    """[M] completions of each group: those with a reward or with tokens. rewards, lengths: [M, G]."""
    return (~np.isnan(rewards) | (lengths > 0)).sum(axis=1).astype(np.int64)


def prompt_id(text: str) -> str:
    """A short name of a prompt, the same in every process."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
