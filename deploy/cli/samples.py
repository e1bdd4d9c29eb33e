"""`bvblend samples`: read what a policy said."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.console import console
from deploy.config.recipe import ConfigError
from deploy.rundir.find import find_run
from deploy.rundir.groups import Place, RunGroups, Wanted
from deploy.rundir.samples import FoundSample, Page, SampleFilter, find_samples, same_prompt
from deploy.rundir.token_file import ReadTokens, Value, keeps_tokens, newest_step, tokens_of
from moments_service.durable import DamagedFileError

if TYPE_CHECKING:
    from rich.text import Text

    from deploy.report.token_colours import Coloured

samples_app = typer.Typer()

_ANY = {"show_default": False}


@samples_app.command()
def samples(
    run: Annotated[Path, typer.Argument(help="Run directory")] = Path("runs/latest"),
    step: Annotated[int | None, typer.Option(min=1, help="Of this step", **_ANY)] = None,
    source: Annotated[str, typer.Option(help="Of this source", **_ANY)] = "",
    cluster: Annotated[int | None, typer.Option(min=0, help="Of this cluster", **_ANY)] = None,
    group: Annotated[str, typer.Option(help="Whose id begins so", **_ANY)] = "",
    text: Annotated[str, typer.Option(help="Whose prompt, completion or error says this", **_ANY)] = "",
    reward: Annotated[str, typer.Option(metavar="LOW:HIGH", help="Rewarded so", **_ANY)] = "",
    tokens: Annotated[str, typer.Option(metavar="LOW:HIGH", help="So long", **_ANY)] = "",
    failed: Annotated[bool | None, typer.Option("--failed/--judged", help="Without reward or not", **_ANY)] = None,
    truncated: Annotated[bool | None, typer.Option("--cut/--whole", help="Ended by a limit or not", **_ANY)] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many")] = 10,
    before: Annotated[str | None, typer.Option(metavar="PLACE", help="Older than an earlier page", **_ANY)] = None,
    beside: Annotated[
        Path | None, typer.Option(metavar="RUN", help="With this run's on the same prompts", **_ANY)
    ] = None,
    beside_step: Annotated[int | None, typer.Option(min=1, help="With those of this step", **_ANY)] = None,
    colour: Annotated[
        Value | None, typer.Option(metavar="VALUE", help="logprob, advantage or mismatch of tokens", **_ANY)
    ] = None,
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
        place=None if colour is None else partial(keeps_tokens, find_run(run).tokens),
    )
    here = _groups_of(run)
    page = find_samples(here, wanted, _place(before), limit)
    if as_json:
        for sample in page.samples:
            print(strict_json(line(sample), ascii_only=True))
    elif beside is None and beside_step is None:
        for block in shown_samples(page, chars, None if colour is None else _coloured(run, colour, page)):
            console.print(block)
        if colour is not None:
            console.print(_meaning(run, page, colour), style="dim")
    else:
        there = here if beside is None else _groups_of(beside)
        others = same_prompt(there, page.samples, None if beside_step is None else beside_step - 1)
        console.print(shown_beside(page.samples, others, chars))


def _coloured(run: Path, value: Value, page: Page) -> "Coloured":
    from deploy.report.token_colours import coloured_text, strongest

    kept = {id(sample.group): _tokens_of(run, sample) for sample in page.samples}
    colours = console.color_system is not None and not console.no_color

    def coloured(sample: FoundSample, chars: int) -> "Text | None":
        group = kept[id(sample.group)]
        tokens = group.get(sample.index)
        most = strongest(list(group.values()), value)
        return None if tokens is None else coloured_text(tokens, value, most, chars, colours)

    return coloured


def _meaning(run: Path, page: Page, value: Value) -> str:
    """What the colours mean, or why there are none."""
    from deploy.report.token_colours import legend

    if page.samples:
        return legend(value)
    if (newest := newest_step(find_run(run).tokens)) is None:
        return "the run kept no values of tokens; transcripts.tokens_every says of which steps it does"
    return (
        f"of those that fit, none has values of tokens; the newest that do are of step {newest + 1} "
        "(transcripts.tokens_every and transcripts.tokens_groups say of which they are kept)"
    )


def _tokens_of(run: Path, sample: FoundSample) -> dict[int, ReadTokens]:
    group = sample.group
    try:
        return tokens_of(find_run(run).tokens, group.step, group.incarnation, group.group.group_id)
    except DamagedFileError as error:
        raise ConfigError(str(error)) from None


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
