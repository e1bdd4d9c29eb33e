"""Regular expressions over the names of a policy's parameters and layers."""

import difflib
import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
"""Text that is a regular expression; it may match anywhere in a name."""


def matching(pattern: str, names: Iterable[str], key: str, what: str) -> list[str]:
    """The names that the pattern matches, in their order. Raises ValueError where there are none.

    key: where the pattern stands in the config.    what: what the names are of, in the singular.
    """
    known = list(names)
    matched = [name for name in known if re.search(pattern, name)]
    if not matched:
        near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.0)
        raise ValueError(f"{key}: {pattern!r} matches no {what} of the policy; names are like {near}")
    return matched
