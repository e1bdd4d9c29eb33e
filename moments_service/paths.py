"""Paths as people write them, with `~` and `$VARIABLES`: expanded here and nowhere else."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema


def expanded(path: str) -> str:
    """The path with `~`, `~user`, `$NAME` and `${NAME}` replaced. Raises ValueError for a user or variable that is not there."""
    filled = os.path.expandvars(path)
    unset = re.search(r"\$(\w+|\{[^}]*\})", filled)
    if unset:
        raise ValueError(f"the environment has no variable {unset[0]}; set it, or write the path without it")
    whole = os.path.expanduser(filled)  # noqa: PTH111 - a policy's name must stay as it is
    if whole.startswith("~"):
        raise ValueError(f"{whole.split('/')[0]} is the home of no user here; write the path without it")
    return whole


PathText = Annotated[str, AfterValidator(expanded), WithJsonSchema({"type": "string", "format": "path"})]
"""A field that holds a path, or that may hold one; a default with `~` in it needs `validate_default`."""
