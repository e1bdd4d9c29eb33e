"""From a configuration to a trained policy: starts every part, trains, evaluates, exports, sums up, ends every part."""

import asyncio
import logging
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.placement import addresses
from actors.prompts.feed import Prompt, PromptFeed
from actors.prompts.sources import PromptPool, load_prompts
from deploy.cluster.environment import EnvironmentProblemError
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError
from deploy.mirror.mirror import mirrored
from deploy.report.live import Display
from deploy.report.progress import EMBEDDING, lines
from deploy.report.summary import summarise
from deploy.run.deadlines import Punctual
from deploy.run.dispatch import Dispatcher
from deploy.run.evaluation import Evaluation
from deploy.run.fleet import RolloutFleet
from deploy.run.prompt_set import prompt_set, refuse_missing_difficulty
from deploy.run.run import Run
from deploy.run.watchdog import start_watchdog
from deploy.rundir.layout import RunDirectory
from deploy.train import train
from deploy.watching.trackers import TrackerName
from deploy.watching.watchers import Watchers
from learner.group import LearnerGroup
from learner.job import LearnerJob
from moments_service.actor import spawn_moments_actor
from moments_service.clusters.versions import ClusterVersions
from moments_service.estimators import fades_by_move
from moments_service.ledger import last_incarnation
from moments_service.seeding import derive_seed

logger = logging.getLogger(__name__)


class StoppedByHandError(RuntimeError):
    """Somebody asked the run to end; what is needed to resume is on the disk."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a finished run is, and its summary.json."""

    directory: RunDirectory
    summary: dict[str, Any]


def read_pool(config: RunConfig) -> PromptPool:
    """Every prompt of the run. Raises ConfigError for a source that cannot be read."""
    try:
        pool = load_prompts(config.prompts, Path())
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if len(pool.train) < 1:
        raise ConfigError("prompts.sources: no training prompts are left; raise `limit` or lower `held_out`")
    refuse_missing_difficulty(config, pool.train)
    return pool


def join(address: str | None) -> None:
    """Connect to the Ray cluster at `address`, or at RAY_ADDRESS. Raises EnvironmentProblemError where there is none."""
    try:
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise EnvironmentProblemError(f"no Ray cluster at {address or os.environ['RAY_ADDRESS']}: {error}") from None


def connect(config: RunConfig, address: str | None) -> "subprocess.Popen[bytes] | None":
    """Join the Ray cluster at `address` or RAY_ADDRESS; start one on this machine if there is neither.

    Returns the watchdog of a Ray that was started here; keep it for as long as the driver lives.
    """
    # A private Ray on loopback needs no lecture about its token.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    if address is not None or os.environ.get("RAY_ADDRESS"):
        join(address)
        return None
    wanted = config.rollout.actors * config.rollout.cpus + config.learner.world_size * config.learner.cpus
    watchdog = start_watchdog()
    ray.init(
        num_cpus=max(os.cpu_count() or 1, int(np.ceil(wanted))),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    return watchdog


async def run_training(
    config: RunConfig,
    directory: RunDirectory,
    pool: PromptPool,
    display: Display,
    checkpoint: Path | None = None,
    trackers: Sequence[TrackerName] = (),
) -> RunResult:
    """Train from the start or from a checkpoint to the end, and tell `trackers` about it. Ray must be connected.

    Raises StoppedByHandError on SIGINT and SIGTERM, after everything was written that a resume needs.
    """
    async with (
        mirrored(config, directory, display.note) as mirror,
        _started(config, directory, pool, display, checkpoint, trackers) as run,
    ):
        run.mirror = mirror
        watched = _watched_prompts(config, pool)
        training = asyncio.create_task(_evaluated_training(run, watched), name="train")
        _stop_on_signals(run, training)
        try:
            start, end = await training
        except asyncio.CancelledError:
            if run.interrupted in (None, "generate"):
                await run.checkpoint()
            raise StoppedByHandError(f"stopped after {run.step} steps; go on with --resume {directory.path}") from None
        display.note("writing the final policy")
        await run.keep_moments()
        await run.learner.export_hf(str(directory.policy))
        return RunResult(directory, summarise(directory, start, end, config.moments.estimator))


async def _evaluated_training(
    run: Run, watched: dict[str, tuple[Prompt, ...]]
) -> tuple[dict[str, Evaluation], dict[str, Evaluation]]:
    start = run.directory.read_evaluations(0)
    if not start:
        run.display.note("evaluating the starting policy")
        start = await _evaluate(run, watched)
    run.display.note("training")
    run.start_clock()
    await train(run)
    if run.step < run.config.steps:
        raise asyncio.CancelledError
    run.display.note("evaluating the trained policy")
    return start, await _evaluate(run, watched)


async def _evaluate(run: Run, watched: dict[str, tuple[Prompt, ...]]) -> dict[str, Evaluation]:
    results = {split: await run.evaluate(prompts) for split, prompts in watched.items()}
    for split, evaluation in results.items():
        run.report(split, evaluation)
    return results


@asynccontextmanager
async def _started(
    config: RunConfig,
    directory: RunDirectory,
    pool: PromptPool,
    display: Display,
    checkpoint: Path | None,
    trackers: Sequence[TrackerName],
) -> AsyncIterator[Run]:
    """All parts of a run, started side by side and ended together."""
    incarnation = _next_incarnation(directory)
    snapshot = checkpoint / "moments" if checkpoint is not None else None
    display.note(f"{len(pool.train)} training prompts, {len(pool.held_out)} held out; run directory {directory.path}")
    display.note("starting the engine, the learner and the moments service")
    moments_actor = spawn_moments_actor(config.moments, directory.moments, config.seed, incarnation, snapshot)
    moments = Punctual(moments_actor, "the moments service", config.stall_timeout_s)
    verifiers = sorted({prompt.verifier for prompt in (*pool.train, *pool.held_out)})
    fleet = RolloutFleet(config, verifiers)
    # Tasks begin in the order in which they were made: the learner's places, which are harder to find, are asked for first.
    starting_learner = asyncio.create_task(_start_learner(config, directory))
    starting_fleet = asyncio.create_task(fleet.start())
    run: Run | None = None
    try:
        prompts, learner, _ = await asyncio.gather(
            asyncio.to_thread(prompt_set, config, pool.train, lines(display.note, EMBEDDING)),
            starting_learner,
            starting_fleet,
        )
        display.note(seating(learner, fleet))
        await moments.fit_clusters.remote(prompts)
        names = cluster_names(pool, await moments.assign.remote(prompts))
        display.name_clusters(names)
        rows = () if prompts.embeddings is None else zip(prompts.prompt_ids, prompts.embeddings, strict=True)
        embeddings = dict(rows)
        feed = PromptFeed(
            pool.train,
            derive_seed(config.seed, "feed"),
            config.group_size,
            config.max_group_size,
            config.prompts.order,
        )
        dispatcher = Dispatcher(feed, fleet, moments_actor, embeddings, config.slots, config.rollout.group_timeout_s)
        run = Run(config, directory, pool, feed, fleet, learner, moments, dispatcher, display, incarnation, names)
        if checkpoint is not None:
            await run.restore(checkpoint)
        run.watchers = Watchers.open(config, directory, run.step, trackers, display.note)
        await run.inform_feed()
        await run.show_services(force=True)
        yield run
    finally:
        if run is not None:
            await run.close()
        else:
            await _abandon(fleet, moments_actor, starting_fleet, starting_learner)


def _next_incarnation(directory: RunDirectory) -> int:
    # A start that died before its first group has left its clusters only.
    seen = ClusterVersions(directory.moments, incarnation=0).last_incarnation()
    return max(last_incarnation(directory.moments), seen) + 1


async def _start_learner(config: RunConfig, directory: RunDirectory) -> LearnerGroup:
    job = LearnerJob(
        policy=config.policy,
        total_steps=config.steps,
        export_dtype=config.rollout.dtype,
        longest_sample=config.rollout.max_model_len,
        truncated_sampler=config.sampling.top_p < 1.0 or config.sampling.top_k > 0,
        measure_move=fades_by_move(config.moments),
        inspect_dir=str(directory.path / "skipped"),
    )
    return await LearnerGroup.start(config.learner, job, config.start_timeout_s)


def seating(learner: LearnerGroup, fleet: RolloutFleet) -> str:
    """Which node holds what."""
    ranks, actors = (", ".join(map(str, nodes)) for nodes in (addresses(learner.places), fleet.nodes()))
    return f"learner ranks on {ranks}; rollout actors on {actors}; moments service on {ray.util.get_node_ip_address()}"


async def _abandon(
    fleet: RolloutFleet,
    moments: Any,
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
    ray.kill(moments)


def _stop_on_signals(run: Run, training: "asyncio.Task[Any]") -> None:
    """SIGINT and SIGTERM end the run after the policy step under way, or at once where none is; then its last uploads."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if training.done() and run.mirror is not None:
            run.mirror.give_up()
        if run.stopping or run.phase_now in (None, "generate"):
            training.cancel()
            return
        run.stopping = True
        grace_s = run.config.checkpoint.stop_grace_s
        run.display.note(f"stopping after this step, or without it in {grace_s:g} s; once more drops it now")
        loop.call_later(grace_s, training.cancel)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def _watched_prompts(config: RunConfig, pool: PromptPool) -> dict[str, tuple[Prompt, ...]]:
    """The prompts that are evaluated at the start and the end; the same in every run of a recipe."""
    count = min(config.evaluation.train_prompts, len(pool.train))
    sample = random.Random(derive_seed(0, "evaluation")).sample(pool.train, count)
    return {"train": tuple(sample), "held_out": pool.held_out}


def cluster_names(pool: PromptPool, clusters: np.ndarray) -> list[str]:
    """For each cluster the sources that most of its prompts come from."""
    members: dict[int, Counter[str]] = {}
    for prompt, cluster in zip(pool.train, clusters.tolist(), strict=True):
        members.setdefault(cluster, Counter())[prompt.source] += 1
    names = []
    for cluster in range(max(members) + 1):
        top = members.get(cluster, Counter()).most_common(2)
        total = sum(members.get(cluster, Counter()).values())
        names.append(", ".join(source for source, count in top if count >= 0.2 * total))
    return names
