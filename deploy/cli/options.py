"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from deploy.config.recipe import ConfigError

Recipe = Annotated[
    Path, typer.Argument(help="A YAML recipe, for example deploy/recipes/cold_start.yaml", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Override a key: learner.optimizer.lr=1e-5", show_default=False),
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join; without it RAY_ADDRESS, else Ray is started here")
]
# With --resume, and beside it in --help.
FromStep = Annotated[int | None, typer.Option(metavar="STEP", help="From this step's checkpoint")]
ResumeFromOlder = Annotated[bool, typer.Option("--resume-from-older", help="An older one, if damaged")]
WithoutLostGroups = Annotated[bool, typer.Option("--without-lost-groups", help="Though groups are lost")]
TakeOver = Annotated[bool, typer.Option("--take-over", help="Its owner is surely dead")]


def refuse_without_resume(
    resume: Path | None, from_step: int | None, resume_from_older: bool, without_lost_groups: bool, take_over: bool
) -> None:
    """Raise ConfigError where what says how to go on with a run stands beside none."""
    if resume is None and (from_step is not None or resume_from_older or without_lost_groups or take_over):
        raise ConfigError("--from-step, --resume-from-older, --without-lost-groups and --take-over go with --resume")
