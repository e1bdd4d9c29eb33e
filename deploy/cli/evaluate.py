"""`bvblend eval`: what a policy can do, with how sure that is."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from deploy.cli.console import console, errors
from deploy.cli.options import Overrides
from deploy.cli.places import refuse_unwritable, writing
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, load_recipe
from deploy.evaluation.result import EvaluationResult
from deploy.rundir.layout import RunDirectory

_ANY = {"show_default": False}
PAIR = 2


def evaluate(
    what: Annotated[
        list[str],
        typer.Argument(
            help="A run, a Hugging Face directory or model; results of eval with --compare or --power", **_ANY
        ),
    ],
    recipe: Annotated[
        Path | None, typer.Option(help="Whose prompts and settings count; a run's own if left out", **_ANY)
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="Of the run's checkpoint after so many steps; 0 before training", **_ANY)
    ] = None,
    split: Annotated[Literal["held_out", "train"], typer.Option(help="Which prompts of the recipe")] = "held_out",
    data: Annotated[Path | None, typer.Option(help="A benchmark's JSON lines, CSV or parquet instead", **_ANY)] = None,
    verifier: Annotated[str, typer.Option(help="Of --data")] = "math",
    template: Annotated[str | None, typer.Option(help="Of --data; the recipe's first if left out", **_ANY)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most prompts", **_ANY)] = None,
    samples: Annotated[int, typer.Option(min=1, help="Of each prompt")] = 4,
    temperature: Annotated[float | None, typer.Option(min=0, help="evaluation.temperature if left out", **_ANY)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="evaluation.max_tokens if left out", **_ANY)] = None,
    override: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON of all numbers and verdicts, and a picture beside it; of a run: in it, if left out", **_ANY
        ),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Two results, paired by prompt")] = False,
    power: Annotated[
        float | None, typer.Option(metavar="D", help="How many prompts show a difference of D", **_ANY)
    ] = None,
) -> None:
    """Measure a policy. Example: bvblend eval runs/latest"""
    from deploy.evaluation.comparison import power as prompts_for
    from deploy.evaluation.result import read_result, write_result
    from deploy.report.evaluation import draw_result, shown_power, shown_result
    from deploy.rundir.evaluated import new_place

    if out is not None:
        _refuse_out(out)
    if compare:
        _compare(what, out)
        return
    if len(what) != 1:
        raise ConfigError(
            f"{' '.join(what)}: one policy is evaluated at a time; two results are compared with --compare"
        )
    if power is not None:
        console.print(shown_power(prompts_for(read_result(Path(what[0])), power, (1, 2, 4, 8, 16))))
        return
    changes = [*(override or ()), f"evaluation.samples={samples}"]
    changes += [] if temperature is None else [f"evaluation.temperature={temperature}"]
    changes += [] if max_tokens is None else [f"evaluation.max_tokens={max_tokens}"]
    asked = _Asked(split, data, verifier, template, limit)
    if out is None and RunDirectory(Path(what[0])).config.is_file():
        out = new_place(RunDirectory(Path(what[0])), split if data is None else data.stem)
    result = _evaluated(what[0], recipe, step, changes, asked)
    console.print(shown_result(result))
    if out is not None:
        with writing(out):
            write_result(result, out)
            draw_result(result, out.with_suffix(".png"))
        console.print(f"{out}, {out.with_suffix('.png').name}", soft_wrap=True)


def _compare(what: list[str], out: Path | None) -> None:
    from deploy.evaluation.comparison import differences, remarks, write_differences
    from deploy.evaluation.result import read_result
    from deploy.report.evaluation import draw_differences, shown_differences

    if len(what) != PAIR:
        raise ConfigError(f"--compare: {len(what)} results; name two that `bvblend eval --out` wrote")
    first, second = (read_result(Path(path)) for path in what)
    found = differences(first, second)
    console.print(shown_differences(first.policy, second.policy, found))
    for remark in remarks(first, second):
        console.print(remark, soft_wrap=True, markup=False)
    if out is not None:
        with writing(out):
            write_differences(first, second, out)
            draw_differences(first.policy, second.policy, found, out.with_suffix(".png"))
        console.print(f"{out}, {out.with_suffix('.png').name}", soft_wrap=True)


def _refuse_out(out: Path) -> None:
    if out.suffix == ".png":
        raise ConfigError(f"--out {out}: the JSON goes there and the picture beside it; name a file that ends in .json")
    refuse_unwritable(out)


class _Asked:
    """Which prompts."""

    def __init__(self, split: str, data: Path | None, verifier: str, template: str | None, limit: int | None) -> None:
        self.split, self.data, self.verifier, self.template, self.limit = split, data, verifier, template, limit

    def config(self, config: RunConfig) -> RunConfig:
        """The same with the prompts that are asked."""
        from deploy.evaluation.what import file_source

        if self.data is None:
            return config
        template = config.prompts.sources[0].template if self.template is None else self.template
        source = file_source(self.data, self.verifier, template)
        return config.model_copy(update={"prompts": config.prompts.model_copy(update={"sources": (source,)})})

    @property
    def name(self) -> str:
        return (
            f"{'held out' if self.split == 'held_out' else 'training'} prompts" if self.data is None else self.data.name
        )


def _evaluated(what: str, recipe: Path | None, step: int | None, changes: list[str], asked: _Asked) -> EvaluationResult:
    from deploy.evaluation.what import policy_of_run
    from deploy.rundir.find import find_run, load_run_config

    if RunDirectory(Path(what)).config.is_file():
        directory = find_run(Path(what))
        own = load_run_config(directory, changes)
        with policy_of_run(directory, own, step) as (policy, name, after):
            found = _of(own if recipe is None else load_recipe(recipe, changes), policy, name, asked, (directory, own))
            return replace(found, step=after)
    if step is not None:
        raise ConfigError(f"--step {step}: {what} is no run")
    if recipe is None:
        raise ConfigError(f"{what} is no run, so --recipe has to say how its prompts are made and its samples drawn")
    here = Path(what).resolve()
    policy, name = (str(here), "/".join(here.parts[-2:])) if here.is_dir() else (what, what)
    return _of(load_recipe(recipe, changes), policy, name, asked)


def _of(
    config: RunConfig, policy: str, name: str, asked: _Asked, run: tuple[RunDirectory, RunConfig] | None = None
) -> EvaluationResult:
    """run: whose clusters the prompts are shown by, with its own configuration."""
    from deploy.evaluation.draw import evaluation_draw
    from deploy.evaluation.here import evaluate_here
    from deploy.evaluation.result import with_clusters
    from deploy.evaluation.what import asked as chosen
    from deploy.report.progress import EMBEDDING, bar
    from deploy.run.launch import read_pool
    from deploy.run.policy_check import refuse_unfit_policy
    from deploy.run.prompt_clusters import clusters_of_run
    from deploy.run.prompt_lengths import without
    from deploy.run.verifier_check import refuse_unusable_verifiers

    config = asked.config(config).model_copy(update={"policy": policy})
    whole = read_pool(config)
    refuse_unusable_verifiers(config, whole)
    pool = without(whole, refuse_unfit_policy(config, whole), config.prompts.max_tokens)
    prompts = chosen(pool.held_out if asked.data is None and asked.split == "held_out" else pool.train, asked.limit)
    if not prompts:
        raise ConfigError(
            "no prompts are held out by the recipe; set `held_out` of a source, or take --split train or --data FILE"
        )
    clusters = {}
    if run is not None:
        with bar(errors, EMBEDDING) as advance:
            clusters = clusters_of_run(*run, prompts, advance)
    with bar(errors, "prompts") as advance:
        groups = asyncio.run(evaluate_here(config, prompts, lambda done: advance(done, len(prompts))))
    return EvaluationResult(name, asked.name, evaluation_draw(config), with_clusters(prompts, groups, clusters))
