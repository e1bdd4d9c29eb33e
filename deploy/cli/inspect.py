"""The commands that look at runs and at the machine, and start no run."""

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.console import console, errors
from deploy.cli.options import Overrides
from deploy.cli.places import writing
from deploy.cluster.environment import EnvironmentProblemError, check_packages
from deploy.config.recipe import ConfigError
from deploy.rundir.find import find_run, load_run_config

inspect_app = typer.Typer()


@inspect_app.command()
def explain(
    group_id: Annotated[str, typer.Argument(help="A group's id, from the ledger or a log", show_default=False)],
    run: Annotated[Path, typer.Option(help="Run directory")] = Path("runs/latest"),
) -> None:
    """Print every number behind a group's advantages, and compute them again. Example: bvblend explain 3f…:0:0:0"""
    from deploy.report.explain import explanation
    from moments_service.ledger import LedgerDamagedError
    from moments_service.offline.explain import GroupNotFoundError
    from moments_service.offline.explain import explain as explain_group
    from moments_service.offline.replay import estimator_label

    directory = find_run(run)
    config = load_run_config(directory)
    try:
        found = explain_group(config.moments, directory.moments, group_id)
    except (GroupNotFoundError, FileNotFoundError, LedgerDamagedError) as error:
        raise ConfigError(str(error)) from None
    shaped_by = [rule.kind for rule in config.shaping]
    for one in found:
        console.print(explanation(one, estimator_label(one.config), shaped_by))


@inspect_app.command()
def replay(
    log: Annotated[
        Path,
        typer.Argument(
            help="JSON lines (step, group, prompt or cluster, rewards), TRL's completions_*.parquet, verl's rollout data; or a directory of them",
            show_default=False,
        ),
    ],
    estimator: Annotated[
        str, typer.Option(help="Estimators, separated by commas: grpo, bv_blend:eb, pass_at_k:k=8, …")
    ] = "hierarchical",
    override: Overrides = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the clusters, where the log gives prompts")] = 0,
    reward: Annotated[
        str | None,
        typer.Option(
            help="Columns of a log of completions that make the reward: accuracy=1,format=0.5", show_default=False
        ),
    ] = None,
) -> None:
    """Run any log of rewards through estimators, without a run. Example: bvblend replay rewards.jsonl --estimator hierarchical,grpo"""
    from deploy.report.replaying import replay_file, reward_weights

    weights = None if reward is None else reward_weights(reward)
    errors.print(replay_file(log, estimator.split(","), override or (), seed, errors, weights))


@inspect_app.command()
def advise(
    log: Annotated[Path, typer.Argument(help="A run directory, or a log that replay reads", show_default=False)],
    override: Overrides = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the clusters and of what is drawn")] = 0,
    reward: Annotated[
        str | None, typer.Option(help="Columns that make the reward, as of replay", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers, for programs")] = False,
) -> None:
    """Say from a log which estimator, group size and clusters suit it, and why. Example: bvblend advise runs/latest"""
    from deploy.report.advice import advice_of, shown_advice
    from deploy.report.replaying import reward_weights
    from moments_service.durable import strict_json

    weights = None if reward is None else reward_weights(reward)
    found = advice_of(log, override or (), seed, errors, weights)
    if as_json:
        print(strict_json(found.as_json(), ascii_only=True))
    else:
        console.print(shown_advice(found, str(log)))


@inspect_app.command()
def dashboard(
    runs_dir: Annotated[Path, typer.Argument(help="Directory of runs, or one run")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8420,
    host: Annotated[str, typer.Option(help="Any but loopback asks for a token")] = "127.0.0.1",
) -> None:
    """Runs in the browser. Example: bvblend dashboard runs"""
    from deploy.dashboard.serve import TOKEN_VARIABLE, access_for, address_of, listen, serve
    from deploy.rundir.catalog import refuse_no_directory

    refuse_no_directory(runs_dir)
    access = access_for(host)
    bound = listen(host, port)
    console.print(f"dashboard of {runs_dir}: {address_of(host, bound)}", soft_wrap=True)
    if access.new_token:
        console.print(f"token, unless {TOKEN_VARIABLE} names one: {access.token}", soft_wrap=True)
    serve(runs_dir, access, bound)


@inspect_app.command()
def runs(runs_dir: Annotated[Path, typer.Argument(help="Directory of runs")] = Path("runs")) -> None:
    """List runs, newest first. Example: bvblend runs runs"""
    from deploy.report.runs import runs_table
    from deploy.rundir.catalog import Catalog

    console.print(runs_table(Catalog(runs_dir).rows()))


@inspect_app.command()
def top(
    run: Annotated[Path, typer.Argument(help="Run directory")] = Path("runs/latest"),
    once: Annotated[bool, typer.Option("--once", help="Draw it once and end, as without a terminal")] = False,
) -> None:
    """Watch a run in the terminal. Example: bvblend top runs/latest"""
    from deploy.report.top import watch

    watch(find_run(run), console, once)


@inspect_app.command()
def doctor(
    run: Annotated[
        Path | None, typer.Argument(help="Also write all there is to know about this run into one zip")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The zip; bvblend-doctor-RUN.zip here if left out")] = None,
    env: Annotated[bool, typer.Option("--env", help="Check the installed packages only")] = False,
) -> None:
    """Check this machine; with a run, collect what somebody who helps needs. Example: bvblend doctor runs/latest"""
    from deploy.cluster.doctor import check_machine, machine_table, packages_table

    packages = check_packages()
    console.print(packages_table(packages))
    checks = [] if env else check_machine()
    if checks:
        console.print(machine_table(checks))
    if run is not None:
        from deploy.cluster.doctor_bundle import write_bundle

        directory = find_run(run)
        out = out or Path(f"bvblend-doctor-{directory.path.name}.zip")
        with writing(out):
            lines = list(write_bundle(directory, out, packages, checks))
        for line in lines:
            console.print(line, soft_wrap=True)
    if any(check.problem for check in packages) or any(check.problem for check in checks):
        raise EnvironmentProblemError("the environment is wrong or half made: see the last column")
