"""`bvblend train`: from a recipe, or a run to go on with, to a trained policy."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actors.redaction import redacted
from deploy.cli.console import console
from deploy.cli.ending import exit_code, keep, say
from deploy.cli.lasting_output import outlast_readers
from deploy.cli.options import (
    Address,
    FromStep,
    Overrides,
    ResumeFromOlder,
    TakeOver,
    WithoutLostGroups,
    refuse_without_resume,
)
from deploy.cli.places import new_run_directory
from deploy.cluster.address import named_address, ray_to_join
from deploy.cluster.environment import require_packages
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, dump_config, load_recipe
from deploy.run import signals
from deploy.run.errors import StoppedByHandError
from deploy.run.policy_check_apart import PolicyCheck
from deploy.rundir.find import find_run, load_run_config
from deploy.rundir.layout import RunDirectory
from deploy.rundir.owner import RunOwner
from deploy.watching.trackers import TrackerName, chosen_trackers
from moments_service import durable

if TYPE_CHECKING:
    from actors.prompts.pool import PromptPool
    from deploy.report.live import Display
    from deploy.run.ray_cluster import OwnRay
    from deploy.rundir.resume import ResumePoint
    from moments_service.offline.portable import WarmStart


def train(
    recipe: Annotated[Path | None, typer.Argument(help="A YAML recipe", show_default=False)] = None,
    override: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with a run from its latest checkpoint")] = None,
    from_step: FromStep = None,
    resume_from_older: ResumeFromOlder = False,
    without_lost_groups: WithoutLostGroups = False,
    take_over: TakeOver = False,
    warm_start: Annotated[
        Path | None, typer.Option(help="Begin with moments that `bvblend moments export` wrote")
    ] = None,
    discount: Annotated[float, typer.Option(help="Share of their mass to keep, in (0, 1]")] = 1.0,
    codebook: Annotated[
        Path | None, typer.Option(help="Begin with a codebook that `bvblend clusters fit` wrote")
    ] = None,
    address: Address = None,
    dashboard: Annotated[
        str | None, typer.Option(help="Also serve the dashboard, at PORT or HOST:PORT, while the run goes on")
    ] = None,
    track: Annotated[str | None, typer.Option(help="Also log to tensorboard,wandb,mlflow, or some of them")] = None,
    wait_for_nodes: Annotated[
        bool, typer.Option("--wait-for-nodes", help="Nodes are still to come: wait for room, do not refuse at once")
    ] = False,
) -> None:
    """Train a policy. Example: bvblend train deploy/recipes/cold_start.yaml --set seed=1"""
    if (recipe is None) == (resume is None):
        raise ConfigError("name a recipe, or a run to --resume, and not both")
    if (warm_start is not None) + (codebook is not None) + (resume is not None) > 1:
        raise ConfigError("--resume, --warm-start and --codebook each say what to begin with; choose one")
    refuse_without_resume(resume, from_step, resume_from_older, without_lost_groups, take_over)
    with ExitStack() as owned:
        directory, point = None, None
        if resume is not None:
            directory = find_run(resume)
            config = load_run_config(directory, override or ())
        else:
            assert recipe is not None
            config = load_recipe(recipe, override or ())
        require_packages(config.rollout.engine.kind)
        policy_check = owned.enter_context(PolicyCheck())
        from deploy.run.warm_start import read_warm_start
        from deploy.rundir.resume import resume_point

        if directory is not None:
            owned.enter_context(RunOwner.acquire(directory.path, take_over))
            begun = time.monotonic()
            point = resume_point(directory, from_step, resume_from_older, without_lost_groups, _note)
            if point is not None:
                _note(f"{point.checkpoint} and the ledger are whole; read in {time.monotonic() - begun:.1f} s")
        trackers = chosen_trackers(track, directory)

        start = read_warm_start(config, warm_start, codebook, discount)
        _train(
            config,
            directory,
            point,
            address,
            start,
            policy_check,
            owned,
            dashboard=dashboard,
            trackers=trackers,
            wait_for_nodes=wait_for_nodes,
        )


def _train(
    config: RunConfig,
    directory: RunDirectory | None,
    point: "ResumePoint | None",
    address: str | None,
    start: "WarmStart | None",
    policy_check: PolicyCheck,
    owned: ExitStack,
    *,
    dashboard: str | None,
    trackers: Sequence[TrackerName],
    wait_for_nodes: bool,
) -> None:
    from actors.placement import alive_nodes
    from deploy.cluster.placement import refuse_what_does_not_fit
    from deploy.report.live import create_display
    from deploy.run.launch import run_training
    from deploy.run.ray_cluster import connect
    from deploy.run.ray_watch import joined_ray, started_ray, watched

    outlast_readers()
    show = None
    if dashboard is not None:
        from deploy.dashboard.actor import parse_address, refuse_taken, start_dashboard

        access, port = parse_address(dashboard)
        refuse_taken(access, port)
        show = partial(start_dashboard, access, port)
    if named_address(address) is not None:
        ray_to_join(address)
    pool = _usable_prompts(config, directory, point, policy_check)
    if directory is None:
        directory = new_run_directory(config)
        owned.enter_context(RunOwner.acquire(directory.path))
    else:
        _keep_changes(config, directory)
    if start is not None:
        start.place(directory.moments)
    directory.begin()
    display = create_display(console, config.steps)
    if point is not None:
        display.note(f"going on from {point.checkpoint}")
    elif directory.metrics.exists():
        display.note("this run has no checkpoint yet; it begins again")
    own_ray = None

    def tell(error: BaseException) -> None:
        _tell(directory, display, error)
        if own_ray is not None and exit_code(error) == 4:
            own_ray.keep_logs(directory.ray_logs)

    with ExitStack() as parts, _closing_words(directory, display, tell):
        parts.callback(lambda: _end_ray(own_ray))
        own_ray = connect(config, address)
        signals.on_request(signals.interrupt)  # for SIGTERM Ray has set one that ends without a word
        ray_itself = joined_ray() if own_ray is None else started_ray()
        parts.enter_context(watched(ray_itself, partial(_end_now, directory, tell)))
        if not wait_for_nodes:
            refuse_what_does_not_fit(config, alive_nodes())
        if own_ray is None:
            _note_wait(config, display)
        if show is not None:
            _keep, page = show(directory.path.parent)
            display.note(f"dashboard: {page}")
        result = asyncio.run(run_training(config, directory, pool, display, point, trackers))
    _show_end(result.summary, directory)


def _usable_prompts(
    config: RunConfig, directory: RunDirectory | None, point: "ResumePoint | None", policy_check: PolicyCheck
) -> "PromptPool":
    """The prompts of the run, once everything that they and the configuration name was found fit. Raises ConfigError before anything starts."""
    from deploy.mirror.mirror import refuse_unwritable_mirror
    from deploy.run.launch import read_pool, refuse_empty_shares, refuse_other_prompts
    from deploy.run.verifier_check import refuse_unusable_verifiers
    from deploy.rundir.resume import refuse_what_cannot_go_on

    if directory is not None and point is not None:
        refuse_what_cannot_go_on(config, directory, point)
    pool = read_pool(config, point)
    refuse_unusable_verifiers(config, pool)
    pool = policy_check.refuse_unfit(config, pool)
    refuse_empty_shares(config, pool)
    if point is not None and (new := refuse_other_prompts(config, pool, point)):
        _note(f"{new} new training prompts; an epoch over all {len(pool.train)} begins")
    refuse_unwritable_mirror(config)
    return pool


@contextmanager
def _closing_words(
    directory: RunDirectory, display: "Display", tell: Callable[[BaseException], None]
) -> Iterator[None]:
    """Say and keep why a run ends early before its last parts are ended, which may take a while or fail. Another Ctrl-C drops them."""
    from deploy.run.stopping import as_asked

    try:
        yield
    except (Exception, KeyboardInterrupt) as raised:
        error = as_asked(raised, directory.path)
        code = exit_code(error)
        signals.on_request(lambda: os._exit(code))
        tell(error)
        raise typer.Exit(code) from None
    finally:
        display.close()


def _end_now(directory: RunDirectory, tell: Callable[[BaseException], None], died: Exception) -> None:
    """What the process waits for will never come."""
    from deploy.run.stopping import as_asked

    tell(error := as_asked(died, directory.path))
    os._exit(exit_code(error))


def _tell(directory: RunDirectory, display: "Display", error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt):
        error = StoppedByHandError(f"stopped before the run began; begin it with --resume {directory.path}")
    display.close()
    say(error)
    keep(directory, error)


def _end_ray(own_ray: "OwnRay | None") -> None:
    import ray

    ray.shutdown()
    if own_ray is not None:
        own_ray.close()


def _keep_changes(config: RunConfig, directory: RunDirectory) -> None:
    """Say what the run goes on with otherwise than it was started last, and let its config.yaml say so too."""
    from deploy.rundir.resume import changed_since, has_unrecorded_starts

    for change in changed_since(directory, config):
        _note(redacted(f"changed since the last start: {change}"))
    if config == load_run_config(directory):
        return
    if has_unrecorded_starts(directory):
        _note(
            "an older version began this run, and config.yaml says how: it stays, and the next resume needs the same --set"
        )
    else:
        durable.write_text(directory.config, dump_config(config))


def _note(line: str) -> None:
    console.print(line, soft_wrap=True)


def _show_end(summary: dict[str, Any], directory: RunDirectory) -> None:
    from deploy.report.summary import end_sentences, rich_table

    console.print(rich_table(summary))
    for sentence in end_sentences(summary):
        console.print(sentence, markup=False)
    console.print(f"picture and numbers: {directory.path}/summary.png, summary.md, summary.json", soft_wrap=True)


def _note_wait(config: RunConfig, display: "Display") -> None:
    """Say what the run will wait for, where others use the cluster."""
    from actors.placement import alive_nodes
    from deploy.cluster.placement import busy

    if (reason := busy(config, alive_nodes())) is not None:
        display.note(f"waiting up to {config.start_timeout_s:g} s for room: {reason}")
