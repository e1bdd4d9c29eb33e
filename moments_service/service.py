"""The moments service: takes scored groups in, hands out batches of blended advantages, remembers what was trained on.

Plain async Python in one event loop; `actor.py` is the Ray shell around it. Everything that may be sent twice is
recognised by its id: `submit` by group, `next_batch` and `commit` by step.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from moments_service.buffer import GroupBuffer, ReadyGroup
from moments_service.codebook import Codebook, fit_codebook
from moments_service.config import MomentsConfig
from moments_service.estimators import RewardBatch
from moments_service.estimators.grpo import grpo
from moments_service.groups import Batch, BlendedGroup, GroupStatus, PolicyMove, ScoredGroup, Transcript
from moments_service.ledger import Ledger, LedgerCommit, LedgerGroup
from moments_service.moments import CommittedRewards
from moments_service.seeding import derive_seed
from moments_service.signal import reward_metrics, signal_metrics
from moments_service.state import Counts, MomentsState

logger = logging.getLogger(__name__)

CODEBOOK_FILE = "codebook.safetensors"
LEDGER_FILE = "ledger.sqlite"


class MomentsService:
    """Owner of the ledger, the codebook and the moments of one run.

    directory: where the ledger and the codebook live.    incarnation: which start of the run this is.
    snapshot: directory written by `snapshot`, to go on from; what this incarnation's ledger holds is replayed on top.
    """

    def __init__(
        self, config: MomentsConfig, directory: Path, seed: int, incarnation: int = 0, snapshot: Path | None = None
    ) -> None:
        self._config = config
        self._directory = directory
        self._seed = seed
        self._buffer = GroupBuffer()
        self._drawn: Batch | None = None
        # Groups that nobody will train on; they wait here for the next commit to enter history.
        self._closed: list[ReadyGroup] = []
        # Ids between their acknowledgement and their commit; older ones are recognised by the ledger.
        self._open: set[str] = set()
        self._committing = asyncio.Lock()
        self._counts = Counts()
        directory.mkdir(parents=True, exist_ok=True)
        self._ledger = Ledger(directory / LEDGER_FILE, incarnation)
        self._codebook: Codebook | None = None
        self._state: MomentsState | None = None
        if (directory / CODEBOOK_FILE).exists():
            self._use(Codebook.load(directory / CODEBOOK_FILE))
        if snapshot is not None:
            self._restore(snapshot)
        self._replay()

    async def fit_clusters(self, embeddings: np.ndarray) -> int:
        """Fit the codebook on the prompt set, once per run; later calls return what there is.

        embeddings: [N, d] float32, unit length. Returns the number of clusters.
        """
        if self._codebook is None:
            seed = derive_seed(self._seed, "codebook")
            codebook = await asyncio.to_thread(fit_codebook, embeddings, self._config.clusters.count, seed)
            partial = self._directory / f"{CODEBOOK_FILE}.partial"
            codebook.save(partial)
            partial.rename(self._directory / CODEBOOK_FILE)
            self._use(codebook)
        return len(self._fitted())

    async def submit(self, group: ScoredGroup, payload: Any = None, transcript: Transcript | None = None) -> None:
        """Take one scored group. Returns when its header is on the disk; a group sent twice counts once.

        payload: an opaque handle that comes back in the batch; None for a group that nobody can train on.
        """
        codebook = self._fitted()
        if self._ledger.holds(group.group_id):
            return
        embedding = group.embedding
        if embedding is None:
            raise ValueError(f"group {group.group_id} carries no embedding, and clusters are made of embeddings")
        if group.status is GroupStatus.SCORED and payload is None:
            group = replace(group, status=GroupStatus.LOST)
        # The cluster is all that the embedding was for; batches travel without it.
        group = replace(group, embedding=None)
        ready = ReadyGroup(group, int(codebook.assign(embedding[None])[0]), payload)
        await self._ledger.append(group, ready.cluster, transcript)
        if group.group_id in self._open:
            return  # its twin was written in the same moment
        self._open.add(group.group_id)
        self._count(group)
        if group.status is GroupStatus.SCORED:
            await self._buffer.put(ready)
        else:
            self._closed.append(ready)

    async def mark_lost(self, group_ids: tuple[str, ...]) -> tuple[str, ...]:
        """Close groups whose payload died before a batch was made of them. They still count in history.

        Ids that were never submitted or are drawn already are left alone. Returns the ids that were closed.
        """
        lost = self._buffer.remove(group_ids)
        closed = tuple(ready.header.group_id for ready in lost)
        if lost:
            await self._ledger.mark_lost(closed)
            self._counts.lost += len(lost)
            self._closed.extend(lost)
        return closed

    async def next_batch(self, step: int, groups: int) -> Batch:
        """The next `groups` groups in feed order, with advantages from the state before them.

        Waits until there are so many. Asked again for the same step, it returns the same batch.
        """
        if self._drawn is not None and self._drawn.step == step:
            return self._drawn
        if self._drawn is not None:
            raise RuntimeError(f"step {step} asked for a batch while step {self._drawn.step} is not committed")
        if step <= self._fitted_state().last_step:
            raise RuntimeError(f"step {step} is committed already; the last one is {self._fitted_state().last_step}")
        entries = await self._buffer.take(groups)
        self._drawn = self._blend(step, entries)
        return self._drawn

    async def withdraw(self, step: int, lost: tuple[str, ...]) -> None:
        """Take the batch of `step` back because payloads in it are lost: those close, the others wait again."""
        if self._drawn is None or self._drawn.step != step:
            return
        batch, self._drawn = self._drawn, None
        for blended in batch.groups:
            await self._buffer.put(ReadyGroup(blended.group, blended.cluster, blended.payload))
        await self.mark_lost(lost)

    async def commit(self, step: int, policy_version: int, move: PolicyMove | None = None) -> None:
        """Fold the batch of `step` into the moments, after its policy step; a commit sent twice counts once.

        move: how far the step moved the policy, where that is measured.
        Groups that were scored but closed without training are folded in with it: history has no survivorship.
        """
        async with self._committing:
            state = self._fitted_state()
            if step <= state.last_step:
                return
            if self._drawn is None or self._drawn.step != step:
                raise RuntimeError(f"step {step} cannot be committed: no batch was made for it")
            batch, self._drawn = self._drawn, None
            closed, self._closed = self._closed, []
            folded = sorted(
                [(blended.group, blended.cluster) for blended in batch.groups]
                + [(ready.header, ready.cluster) for ready in closed],
                key=lambda entry: (entry[0].sequence, entry[0].group_id),
            )
            commit = LedgerCommit(step, policy_version, move, tuple(group.group_id for group, _ in folded))
            await self._ledger.append_commit(commit, batch)
            state.fold(
                step,
                CommittedRewards(
                    clusters=np.array([cluster for _, cluster in folded]),
                    rewards=padded([group.rewards for group, _ in folded]),
                    prompts=tuple(group.prompt_id for group, _ in folded),
                    policy_version=policy_version,
                    move=move,
                ),
            )
            self._open.difference_update(commit.group_ids)
            self._counts.trained += len(batch.groups)

    async def stats(self) -> dict[str, Any]:
        """Counts, queue depth and the moments of every cluster, for people and dashboards."""
        stats: dict[str, Any] = {"counts": asdict(self._counts), "ready": len(self._buffer), "last_step": -1}
        if self._state is not None:
            every = np.arange(len(self._state.moments))
            history = self._state.history(every)
            nothing = np.full((len(every), 1), np.nan)
            unknown = RewardBatch(nothing, np.zeros_like(nothing), ("",) * len(every), history)
            stats["last_step"] = self._state.last_step
            stats["clusters"] = {
                "mean": history.mean.tolist(),
                "variance": history.variance.tolist(),
                "mass": history.mass.tolist(),
                "weight": self._state.estimate(unknown).weight.tolist(),
                "seen": history.seen.tolist(),
            }
        return stats

    async def assign(self, embeddings: np.ndarray) -> np.ndarray:
        """Cluster of each embedding, [N] int64. embeddings: [N, d] float32, unit length."""
        return self._fitted().assign(embeddings)

    async def snapshot(self, directory: Path) -> None:
        """Write moments and codebook into an existing directory. Only between commit and the next batch."""
        if self._drawn is not None:
            raise RuntimeError(
                f"no snapshot while the batch of step {self._drawn.step} is neither trained on nor committed"
            )
        codebook = self._fitted()
        codebook.save(directory / CODEBOOK_FILE)
        self._fitted_state().save(directory, codebook.fingerprint, self._counts)

    async def close(self) -> None:
        """Finish pending writes and close the ledger."""
        await self._ledger.close()

    def _fitted(self) -> Codebook:
        if self._codebook is None:
            raise RuntimeError("the moments service has no clusters yet: call fit_clusters first")
        return self._codebook

    def _fitted_state(self) -> MomentsState:
        self._fitted()
        assert self._state is not None
        return self._state

    def _use(self, codebook: Codebook) -> None:
        self._codebook = codebook
        self._state = MomentsState(self._config, len(codebook))

    def _restore(self, snapshot: Path) -> None:
        self._use(Codebook.load(snapshot / CODEBOOK_FILE))
        origin = self._fitted_state().load(snapshot)
        self._counts = origin.counts
        if origin.codebook != self._fitted().fingerprint:
            raise ValueError(f"snapshot {snapshot} is mixed up: its moments belong to codebook {origin.codebook}")

    def _replay(self) -> None:
        """Fold again what this incarnation committed before the service died."""
        for commit, groups in self._ledger.commits():
            self._fitted_state().fold(commit.step, committed_rewards(commit, groups))

    def _count(self, group: ScoredGroup) -> None:
        self._counts.groups += 1
        self._counts.completions += len(group.rewards)
        self._counts.errors += sum(error is not None for error in group.errors)
        self._counts.lost += group.status is GroupStatus.LOST

    def _blend(self, step: int, entries: list[ReadyGroup]) -> Batch:
        state = self._fitted_state()
        headers = [entry.header for entry in entries]
        rewards = padded([group.rewards for group in headers])
        batch = RewardBatch(
            rewards=rewards,
            lengths=padded([group.lengths for group in headers], missing=0.0),
            prompts=tuple(group.prompt_id for group in headers),
            history=state.history(np.array([entry.cluster for entry in entries])),
        )
        own = state.estimate(batch)
        metrics = reward_metrics(headers, rewards)
        metrics |= signal_metrics(own, grpo(batch), self._config.blend.max_advantage)
        metrics["reward/errors"] = self._error_share(headers)
        blended = tuple(
            BlendedGroup(
                group=entry.header,
                payload=entry.payload,
                cluster=entry.cluster,
                advantages=tuple(
                    None if reward is None else float(own.values[row, i])
                    for i, reward in enumerate(entry.header.rewards)
                ),
                baseline=float(own.baseline[row]),
                scale=float(own.scale[row]),
                weight=float(own.weight[row]),
            )
            for row, entry in enumerate(entries)
        )
        return Batch(step=step, groups=blended, metrics=metrics)

    def _error_share(self, headers: list[ScoredGroup]) -> float:
        """Share of completions without a reward since the last batch, closed groups included."""
        errors = [error for group in headers + [closed.header for closed in self._closed] for error in group.errors]
        share = sum(error is not None for error in errors) / len(errors)
        if share > self._config.error_alarm:
            examples = sorted({error for error in errors if error is not None})[:3]
            logger.warning("%.0f%% of the completions have no reward: %s", 100 * share, "; ".join(examples))
        return share


def committed_rewards(commit: LedgerCommit, groups: Sequence[LedgerGroup]) -> CommittedRewards:
    """What the ledger remembers of a commit, ready to be folded in again."""
    return CommittedRewards(
        clusters=np.array([group.cluster for group in groups]),
        rewards=padded([group.rewards for group in groups]),
        prompts=tuple(group.prompt_id for group in groups),
        policy_version=commit.policy_version,
        move=commit.move,
    )


def padded(rows: Sequence[Sequence[float | None]], missing: float = np.nan) -> np.ndarray:
    """Ragged rows as [M, G] float64, `missing` where there is nothing."""
    width = max(len(row) for row in rows)
    table = np.full((len(rows), width), missing)
    for i, row in enumerate(rows):
        table[i, : len(row)] = [missing if value is None else value for value in row]
    return table
