"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

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
