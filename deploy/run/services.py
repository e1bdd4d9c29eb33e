"""The services of a run: the moments service, the learner and the rollout actors, started side by side and ended together."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.placement import addresses
from actors.prompts.pool import PromptPool
from actors.prompts.prompt import Prompt
from deploy.config.models import RunConfig
from deploy.report.clusters import main_sources
from deploy.report.progress import EMBEDDING, lines
from deploy.run.fleet import RolloutFleet
from deploy.run.prompt_set import embeds_on_gpu, prompt_set
from deploy.run.remote import Remote
from deploy.rundir.layout import RunDirectory
from deploy.rundir.resume import ResumePoint
from learner.group import LearnerGroup
from learner.job import LearnerJob
from moments_service.actor import spawn_moments_actor
from moments_service.clusters.versions import ClusterVersions
from moments_service.ledger import last_incarnation


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a run that work elsewhere, and what is known of them for as long as they live."""

    moments: Remote
    learner: LearnerGroup
    fleet: RolloutFleet
    incarnation: int
    """Which start of the run this is."""
    cluster_names: Sequence[str]
    """What each cluster mostly holds."""
    held_out: tuple[Prompt, ...]
    """Prompts that are evaluated and never trained on."""

    def actors(self) -> dict[str, Any]:
        """Handles of everything that serves now, by role."""
        ranks = {f"learner rank {rank}": actor for rank, actor in enumerate(self.learner.ranks)}
        serving = enumerate(self.fleet.actors)
        rollouts = {f"rollout actor {index}": actor for index, actor in serving if self.fleet.serving(index)}
        return {"moments service": self.moments.actor} | ranks | rollouts

    async def close(self, timeout_s: float) -> None:
        """End all of them. timeout_s: what each gets for an orderly end. Safe after errors."""
        await asyncio.gather(self.fleet.close(timeout_s), self.learner.close(), self._close_moments(timeout_s))

    async def _close_moments(self, timeout_s: float) -> None:
        closing = self.moments.actor.close.remote()
        await asyncio.to_thread(ray.wait, [closing], timeout=timeout_s)
        ray.kill(self.moments.actor)


async def start_services(
    config: RunConfig,
    directory: RunDirectory,
    pool: PromptPool,
    resume: ResumePoint | None,
    note: Callable[[str], None],
) -> Services:
    """Start every service and make the clusters of the prompts. What was started ends again where anything fails.

    resume: what to go on from.    note: shows a line to people.
    """
    incarnation = _next_incarnation(directory.moments)
    embedding = asyncio.create_task(
        asyncio.to_thread(prompt_set, config, pool.train, lines(note, EMBEDDING)), name="embedding"
    )
    if await asyncio.to_thread(embeds_on_gpu, config):
        await embedding
    moments = Remote(
        spawn_moments_actor(
            config.moments,
            directory.moments,
            config.seed,
            incarnation,
            None if resume is None else resume.snapshot,
            config.model_dump(mode="json"),
            resume is not None and resume.without_lost_groups,
        ),
        "the moments service",
        config.stall_timeout_s,
    )
    fleet = RolloutFleet(config, sorted({prompt.verifier for prompt in (*pool.train, *pool.held_out)}))
    # Tasks begin in the order in which they were made: the learner's places, which are harder to find, are asked for first.
    starting_learner = asyncio.create_task(_start_learner(config, directory.skipped))
    starting_fleet = asyncio.create_task(fleet.start())
    try:
        prompts, learner, _ = await asyncio.gather(embedding, starting_learner, starting_fleet)
        note(where(learner, fleet))
        # For the whole run: an actor leaves its node only with the node, and the learner's takes the run with it.
        learner.offers_elsewhere = any(node != addresses(learner.places)[0] for node in fleet.nodes())
        await moments.fit_clusters(prompts)
        names = cluster_names(pool, await moments.assign(prompts))
    except BaseException:
        await _abandon(fleet, moments, starting_fleet, starting_learner)
        raise
    return Services(moments, learner, fleet, incarnation, names, pool.held_out)


def _next_incarnation(directory: Path) -> int:
    # A start that died before its first group has left its clusters only.
    seen = ClusterVersions(directory, incarnation=0).last_incarnation()
    return max(last_incarnation(directory), seen) + 1


async def _start_learner(config: RunConfig, skipped: Path) -> LearnerGroup:
    job = LearnerJob(
        policy=config.policy,
        total_steps=config.steps,
        export_dtype=config.rollout.dtype,
        weights=config.weights,
        longest_sample=config.rollout.max_model_len,
        truncated_sampler=config.sampling.is_cut,
        measure_move=config.moments.estimator.fades_by_move,
        inspect_dir=str(skipped),
        seed=config.seed,
    )
    return await LearnerGroup.start(config.learner, job, config.start_timeout_s)


async def _abandon(
    fleet: RolloutFleet,
    moments: Remote,
    starting_fleet: "asyncio.Task[None]",
    starting_learner: "asyncio.Task[LearnerGroup]",
) -> None:
    """End what a failed start left behind."""
    starting_fleet.cancel()
    starting_learner.cancel()
    await asyncio.wait([starting_fleet, starting_learner])
    if not starting_learner.cancelled() and starting_learner.exception() is None:
        await starting_learner.result().close()
    await fleet.close(0.0)
    ray.kill(moments.actor)


def where(learner: LearnerGroup, fleet: RolloutFleet) -> str:
    """Which node holds what."""
    ranks, actors = (", ".join(map(str, nodes)) for nodes in (addresses(learner.places), fleet.nodes()))
    return f"learner ranks on {ranks}; rollout actors on {actors}; moments service on {ray.util.get_node_ip_address()}"


def cluster_names(pool: PromptPool, clusters: np.ndarray) -> list[str]:
    """For each cluster the sources that most of its prompts come from."""
    members: dict[int, Counter[str]] = defaultdict(Counter)
    for prompt, cluster in zip(pool.train, clusters.tolist(), strict=True):
        members[cluster][prompt.source] += 1
    return [main_sources(members[cluster]) for cluster in range(max(members) + 1)]
