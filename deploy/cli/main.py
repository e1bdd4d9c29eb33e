"""The `bvblend` command.

Exit codes: 0 done, 2 configuration or usage, 3 environment, 4 the run failed, 130 stopped by hand.
"""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.clusters import clusters_app
from deploy.cli.console import console
from deploy.cli.ending import exit_code, say
from deploy.cli.evaluate import evaluate
from deploy.cli.export import export
from deploy.cli.inspect import inspect_app
from deploy.cli.lasting_output import nobody_reads
from deploy.cli.moments import moments_app
from deploy.cli.options import (
    FromStep,
    Overrides,
    Recipe,
    ResumeFromOlder,
    TakeOver,
    WithoutLostGroups,
    refuse_without_resume,
)
from deploy.cli.samples import samples_app
from deploy.cli.train import train
from deploy.cli.usage import wrong_usage
from deploy.cluster.address import named_address
from deploy.cluster.environment import EnvironmentProblemError, require_packages
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, load_recipe
from deploy.run import signals
from deploy.run.errors import StoppedByHandError
from deploy.rundir.find import load_run_config
from deploy.rundir.layout import RunDirectory

app = typer.Typer(
    help="Reinforcement learning with verifiable rewards whose advantages remember. Start: bvblend train RECIPE",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(clusters_app, name="clusters")
app.add_typer(moments_app, name="moments")
app.add_typer(inspect_app)
app.add_typer(samples_app)
app.command()(train)
app.command()(export)
app.command("eval")(evaluate)


@app.command()
def plan(
    recipe: Recipe,
    override: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to plan for; without it RAY_ADDRESS, else this machine")
    ] = None,
    near: Annotated[
        bool,
        typer.Option("--near", help="Embed all questions, and count those that are near a training prompt"),
    ] = False,
) -> None:
    """Print what a recipe would run, and where; start nothing. Example: bvblend plan deploy/recipes/cold_start.yaml"""
    from deploy.cluster.plan import arithmetic_table, learner_table, processes_table
    from deploy.run.launch import read_pool, refuse_empty_shares
    from deploy.run.policy_check_apart import PolicyCheck
    from deploy.run.prompt_set import overlaps
    from deploy.run.verifier_check import refuse_unusable_verifiers

    config = load_recipe(recipe, override or ())
    with PolicyCheck() as policy_check:
        pool = read_pool(config)
        refuse_unusable_verifiers(config, pool)
        pool = policy_check.refuse_unfit(config, pool)
    refuse_empty_shares(config, pool)
    console.print(processes_table(config))
    if (held := learner_table(config)) is not None:
        console.print(held)
    console.print(arithmetic_table(config, pool))
    for sentence in overlaps(config, pool, near):
        console.print(sentence, markup=False, soft_wrap=True)
    if named_address(address) is not None:
        _plan_places(config, address)


def _plan_places(config: RunConfig, address: str | None) -> None:
    import ray

    from actors.placement import alive_nodes
    from deploy.cluster.placement import busy, places_table, refuse_what_does_not_fit
    from deploy.run.ray_cluster import join

    join(address)
    try:
        nodes = alive_nodes()
    finally:
        ray.shutdown()
    refuse_what_does_not_fit(config, nodes)
    console.print(places_table(config, nodes))
    if (reason := busy(config, nodes)) is not None:
        console.print(f"Not now, others use the cluster: {reason}", style="yellow", soft_wrap=True)


@app.command()
def submit(
    recipe: Annotated[Path | None, typer.Argument(help="A YAML recipe", show_default=False)] = None,
    address: Annotated[
        str, typer.Option(help="The cluster's dashboard", envvar="RAY_ADDRESS")
    ] = "http://127.0.0.1:8265",
    override: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run, as the cluster names it")] = None,
    from_step: FromStep = None,
    resume_from_older: ResumeFromOlder = False,
    without_lost_groups: WithoutLostGroups = False,
    take_over: TakeOver = False,
    working_dir: Annotated[Path | None, typer.Option(help="What the job gets a copy of, with the recipe")] = None,
    runtime_env: Annotated[Path | None, typer.Option(help="Ray's runtime environment, a file")] = None,
    entrypoint_num_cpus: Annotated[float | None, typer.Option(help="CPUs to reserve for the driver")] = None,
    entrypoint_num_gpus: Annotated[float | None, typer.Option(help="GPUs to reserve for the driver")] = None,
    entrypoint_resources: Annotated[
        str | None, typer.Option(help='Other resources for the driver: {"head": 1}')
    ] = None,
    track: Annotated[str | None, typer.Option(help="As of train")] = None,
    wait_for_nodes: Annotated[bool, typer.Option("--wait-for-nodes", help="As of train")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the log to the end of the job")] = True,
) -> None:
    """Train as a job of a Ray cluster. Example: bvblend submit my.yaml --address http://HEAD:8265 --working-dir ."""
    from deploy.cluster import submit as jobs

    if (recipe is None) == (resume is None):
        raise ConfigError("name a recipe, or a run to --resume, and not both")
    refuse_without_resume(resume, from_step, resume_from_older, without_lost_groups, take_over)
    if recipe is not None:
        jobs.refuse_relative_runs_dir(load_recipe(recipe, override or ()))
    elif (directory := RunDirectory(resume or Path())).config.exists():  # it may lie where only the cluster sees it
        load_run_config(directory, override or ())
    more = [
        *(("--from-step", str(from_step)) if from_step is not None else ()),
        *(("--resume-from-older",) if resume_from_older else ()),
        *(("--without-lost-groups",) if without_lost_groups else ()),
        *(("--take-over",) if take_over else ()),
        *(("--track", track) if track is not None else ()),
        *(("--wait-for-nodes",) if wait_for_nodes else ()),
    ]
    job = jobs.Job.submit(
        address,
        jobs.train_command(recipe, resume, override or (), working_dir, *more),
        jobs.runtime_environment(runtime_env, working_dir),
        jobs.driver_resources(entrypoint_num_cpus, entrypoint_num_gpus, entrypoint_resources),
    )
    console.print(f"submitted {job.job_id}; {job.hint()}", soft_wrap=True)
    if wait:
        raise typer.Exit(job.follow(console))


@app.command()
def compare(
    recipe: Recipe,
    estimators: Annotated[
        str, typer.Option(help="Estimators, separated by commas: hierarchical, bv_blend:paper, grpo, pass_at_k:k=8, …")
    ] = "hierarchical,grpo",
    vary: Annotated[
        list[str] | None,
        typer.Option(help="Compare settings too: --vary prompts.order=shuffled,signal", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant, with seeds 0, 1, …")] = 3,
    out: Annotated[Path | None, typer.Option(help="Where to write; runs found there are not run again")] = None,
    override: Overrides = None,
) -> None:
    """Run a recipe under several estimators, and settings. Example: bvblend compare deploy/recipes/cold_start.yaml --seeds 3"""
    from deploy.report.compare import Comparison

    config = load_recipe(recipe, override or ())
    out = out or Path(config.runs_dir) / f"compare-{config.name}"
    comparison = Comparison(config, estimators.split(","), seeds, out, vary or ())
    for engine in {variant.config.rollout.engine.kind for variant in comparison.variants}:
        require_packages(engine)
    comparison.run(console)
    console.print(comparison.table())
    console.print(f"picture and numbers: {comparison.out}/compare.png, compare.json", soft_wrap=True)


def main() -> None:
    """Run the command and turn what went wrong into a message and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that is not UTF-8 is shown what it cannot print as an escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signals.on_request(signals.interrupt)
    command = typer.main.get_command(app)
    try:
        # Not `app()`, which would draw a box around wrong usage, and end without a word where somebody presses Ctrl-C.
        with command.make_context("bvblend", sys.argv[1:]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except KeyboardInterrupt:
        say(StoppedByHandError("stopped by hand"))
        sys.exit(130)
    except SystemExit as end:  # rich's, where nobody reads any more
        sys.exit(0 if isinstance(end.__context__, BrokenPipeError) else end.code)
    except typer.TyperException as error:
        if told := wrong_usage(error.format_message(), command, sys.argv[1:]):
            say(ConfigError(told))
        sys.exit(2)
    except UnicodeEncodeError as error:
        problem: Exception = error
        if error.encoding != "utf-8":  # otherwise half a character in some text, which is no matter of the locale
            problem = EnvironmentProblemError(
                f"{error.object[:80]!r} can be no file's name in this locale, whose encoding is {error.encoding}; "
                "set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
            )
        say(problem)
        sys.exit(exit_code(problem))
    except Exception as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            sys.exit(0)
        say(error)
        sys.exit(exit_code(error))
