"""`bvblend samples`: read what a policy said."""

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.console import console
from deploy.config.recipe import ConfigError
from deploy.rundir.find import find_run
from deploy.rundir.groups import Place, RunGroups, Wanted
from deploy.rundir.samples import SampleFilter, find_samples, same_prompt

samples_app = typer.Typer()

_ANY = {"show_default": False}


@samples_app.command()
def samples(
    run: Annotated[Path, typer.Argument(help="Run directory")] = Path("runs/latest"),
    step: Annotated[int | None, typer.Option(min=1, help="Of this step", **_ANY)] = None,
    source: Annotated[str, typer.Option(help="Of this source", **_ANY)] = "",
    cluster: Annotated[int | None, typer.Option(min=0, help="Of this cluster", **_ANY)] = None,
    group: Annotated[str, typer.Option(help="Of groups whose id begins so", **_ANY)] = "",
    text: Annotated[str, typer.Option(help="Whose prompt, completion or error says this", **_ANY)] = "",
    reward: Annotated[str, typer.Option(metavar="LOW:HIGH", help="Rewarded so; 1: for 1 and more", **_ANY)] = "",
    tokens: Annotated[str, typer.Option(metavar="LOW:HIGH", help="So long", **_ANY)] = "",
    failed: Annotated[bool | None, typer.Option("--failed/--judged", help="Without or with a reward", **_ANY)] = None,
    truncated: Annotated[bool | None, typer.Option("--cut/--whole", help="Ended by a limit or not", **_ANY)] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, to whole groups")] = 10,
    before: Annotated[str | None, typer.Option(metavar="PLACE", help="Older than an earlier page", **_ANY)] = None,
    beside: Annotated[
        Path | None, typer.Option(metavar="RUN", help="With this run's on the same prompts", **_ANY)
    ] = None,
    beside_step: Annotated[int | None, typer.Option(min=1, help="With those of this step", **_ANY)] = None,
    chars: Annotated[int, typer.Option(min=1, help="Of each text")] = 600,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, whole texts")] = False,
) -> None:
    """Read what it said. Example: bvblend samples --text because"""
    from deploy.report.samples import as_json as line
    from deploy.report.samples import shown_beside, shown_samples
    from moments_service.durable import strict_json

    rewards, lengths = _range("--reward", reward), _range("--tokens", tokens)
    wanted = SampleFilter(
        groups=Wanted(group, cluster, None if step is None else step - 1, source),
        lowest=rewards[0],
        highest=rewards[1],
        shortest=None if lengths[0] is None else int(lengths[0]),
        longest=None if lengths[1] is None else int(lengths[1]),
        failed=failed,
        truncated=truncated,
        text=text,
    )
    here = _groups_of(run)
    page = find_samples(here, wanted, _place(before), limit)
    if as_json:
        for sample in page.samples:
            print(strict_json(line(sample), ascii_only=True))
    elif beside is None and beside_step is None:
        for block in shown_samples(page, chars):
            console.print(block)
    else:
        there = here if beside is None else _groups_of(beside)
        others = same_prompt(there, page.samples, None if beside_step is None else beside_step - 1)
        console.print(shown_beside(page.samples, others, chars))


def _groups_of(run: Path) -> RunGroups:
    directory = find_run(run)
    try:
        return RunGroups(directory.moments)
    except FileNotFoundError:
        raise ConfigError(f"{directory.path} has no ledger yet, so there are no samples to read") from None


def _place(before: str | None) -> Place | None:
    try:
        return None if before is None else Place.parse(before)
    except ValueError:
        raise ConfigError(f"--before {before}: no place that an earlier page named; it ends with one") from None


def _range(option: str, text: str) -> tuple[float | None, float | None]:
    """Both ends of LOW:HIGH, either of which may be left out; a single number is both."""
    low, colon, high = text.partition(":")
    try:
        ends = float(low) if low else None, float(high) if high else None
    except ValueError:
        raise ConfigError(f"{option} {text}: no range of numbers; write LOW:HIGH, LOW:, :HIGH or one number") from None
    return ends if colon else (ends[0], ends[0])
