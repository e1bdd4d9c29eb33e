"""What to say to somebody who wrote a name that does not exist."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, or all there is to choose from if nothing is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(names) or 'none'}"
