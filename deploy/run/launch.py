"""From a configuration to a trained policy: starts every part, trains, evaluates, exports, sums up, ends every part."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.prompts.curricula import curriculum_of
from actors.prompts.feed import PromptFeed
from actors.prompts.options import fresh_sources
from actors.prompts.pool import PromptPool
from actors.prompts.prompt import Prompt
from actors.prompts.sources import load_prompts
from deploy.config.fresh import fresh_prompts, refuse_too_few_fresh
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError
from deploy.mirror.mirror import mirrored
from deploy.report.advice import advice_at_the_end
from deploy.report.live import Display
from deploy.report.summary import summarise
from deploy.run.errors import StoppedByHandError
from deploy.run.prompt_set import refuse_missing_difficulty
from deploy.run.report import Reporter
from deploy.run.run import CLOSE_TIMEOUT_S, Run
from deploy.run.services import start_services
from deploy.run.stopping import Stopper
from deploy.rundir.evaluation import Evaluation
from deploy.rundir.layout import RunDirectory
from deploy.rundir.resume import ResumePoint
from deploy.train import train
from deploy.watching.trackers import TrackerName
from deploy.watching.watchers import Watchers
from moments_service.seeding import derive_seed

log = logging.getLogger(__name__)

BINARY = (0.0, 1.0)
"""What verifiers mostly give, where `rewards.range` does not say."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a finished run is, and its summary.json."""

    directory: RunDirectory
    summary: dict[str, Any]


def read_pool(config: RunConfig, resume: ResumePoint | None = None) -> PromptPool:
    """Every prompt of the run. Raises ConfigError for a source that cannot be read."""
    before = {} if resume is None else resume.state["feed"].get("sources", {})
    try:
        had = {name: source["prompts"] for name, source in before.items()}
        by_difficulty = config.moments.clusters.by == "difficulty"
        pool = load_prompts(config.prompts, Path(), by_difficulty, fresh_prompts(config, had))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if len(pool.train) < 1:
        raise ConfigError("prompts.sources: no training prompts are left; raise `limit` or lower `held_out`")
    refuse_missing_difficulty(config, pool.train)
    refuse_empty_shares(config, pool)
    if (caution := config.moments.estimator.caution(*(config.rewards.range or BINARY))) is not None:
        log.warning("%s", caution)
    return pool


def refuse_empty_shares(config: RunConfig, pool: PromptPool) -> None:
    """Raise ConfigError if a source that has a share of the feed has no prompt for it, or one that is fresh too few."""
    if curriculum_of(config.prompts) is None:
        return
    found = {prompt.origin for prompt in pool.train}
    for source in config.prompts.sources:
        if source.name not in found:
            raise ConfigError(
                f"prompts.sources: source `{source.name}` has a share of the feed but no training prompt that is its own; "
                "leave it out, or loosen what leaves its prompts out"
            )
    refuse_too_few_fresh(config, pool)


def prompt_feed(config: RunConfig, pool: PromptPool) -> PromptFeed:
    """What deals the prompts of a run out, from the beginning."""
    seed = derive_seed(config.seed, "feed")
    return PromptFeed(
        pool.train,
        seed,
        config.group_size,
        config.max_group_size,
        config.prompts.order,
        curriculum_of(config.prompts),
        fresh_sources(config.prompts),
    )


def refuse_other_prompts(config: RunConfig, pool: PromptPool, resume: ResumePoint) -> int:
    """How many prompts have come since. Raises ConfigError where the run was dealing other prompts, or in another order."""
    before = resume.prompts
    try:
        prompt_feed(config, pool).load_state(resume.state["feed"], before)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return 0 if before is None else len(pool.train) - len(before)


async def run_training(
    config: RunConfig,
    directory: RunDirectory,
    pool: PromptPool,
    display: Display,
    resume: ResumePoint | None = None,
    trackers: Sequence[TrackerName] = (),
) -> RunResult:
    """Train from the start or from a checkpoint to the end, and tell `trackers` about it. Ray must be connected.

    Raises StoppedByHandError on SIGINT and SIGTERM, after everything was written that a resume needs.
    """
    stopper = Stopper(display.note)
    with stopper.listening():
        try:
            async with (
                mirrored(config, directory, display.note) as mirror,
                _started(config, directory, pool, display, resume, trackers) as run,
            ):
                run.mirror = mirror
                return await _trained(run, pool, display, stopper)
        except asyncio.CancelledError:
            if not stopper.asked:
                raise
            raise StoppedByHandError(f"stopped before more was written; go on with --resume {directory.path}") from None


async def _trained(run: Run, pool: PromptPool, display: Display, stopper: Stopper) -> RunResult:
    """Train to the end, or to a checkpoint where somebody stops the run."""
    training = asyncio.create_task(
        _trained_and_exported(run, _watched_prompts(run.config, pool), display), name="train"
    )
    stopper.watch(run, training)
    try:
        return await training
    except asyncio.CancelledError:
        if run.clock.interrupted in (None, "generate"):
            await run.checkpoint()
            await run.checkpoints.written()
        raise StoppedByHandError(f"stopped after {run.step} steps; go on with --resume {run.directory.path}") from None


async def _trained_and_exported(run: Run, watched: dict[str, Sequence[Prompt]], display: Display) -> RunResult:
    start, end = await _evaluated_training(run, watched, display)
    await run.checkpoints.written()
    display.note("writing the final policy")
    await run.checkpoints.keep_moments()
    await run.learner.export_hf(str(run.directory.policy))
    advice = await asyncio.to_thread(advice_at_the_end, run.directory, run.config)
    estimator = run.config.moments.estimator.kind
    return RunResult(run.directory, summarise(run.directory, start, end, estimator, run.step, advice))


async def _evaluated_training(
    run: Run, watched: dict[str, Sequence[Prompt]], display: Display
) -> tuple[dict[str, Evaluation], dict[str, Evaluation]]:
    start = run.directory.read_evaluations(0)
    if not start:
        display.note("evaluating the starting policy")
        start = await run.evaluate(watched)
    display.note("training")
    run.clock.start_step()
    await train(run)
    if run.step < run.config.steps:
        raise asyncio.CancelledError
    display.note("evaluating the trained policy")
    return start, await run.evaluate(watched)


@asynccontextmanager
async def _started(
    config: RunConfig,
    directory: RunDirectory,
    pool: PromptPool,
    display: Display,
    resume: ResumePoint | None,
    trackers: Sequence[TrackerName],
) -> AsyncIterator[Run]:
    """A run with all of its parts, ended together."""
    display.note(f"{len(pool.train)} training prompts, {len(pool.held_out)} held out; run directory {directory.path}")
    display.note("starting the engine, the learner and the moments service")
    services = await start_services(config, directory, pool, resume, display.note)
    display.name_clusters(services.cluster_names)
    try:
        watchers = Watchers.open(config, directory, 0 if resume is None else resume.step, trackers, display.note)
        run = Run(config, directory, services, prompt_feed(config, pool), Reporter(directory, display, watchers))
    except BaseException:
        await services.close(CLOSE_TIMEOUT_S)
        raise
    try:
        for left in directory.set_aside_after(0 if resume is None else resume.step):
            display.note(f"saved later, by a history that the run leaves: {left}")
        if resume is not None:
            await run.restore(resume)
        await run.begin()
        yield run
    finally:
        await run.close()


def _watched_prompts(config: RunConfig, pool: PromptPool) -> dict[str, Sequence[Prompt]]:
    """The prompts that are evaluated at the start and the end; the same in every run of a recipe."""
    count = min(config.evaluation.train_prompts, len(pool.train))
    sample = random.Random(derive_seed(0, "evaluation")).sample(pool.train, count)
    return {"train": tuple(sample), "held_out": pool.held_out}
