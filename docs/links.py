"""What the site makes of links from a page to a file of the repository: the file's name, since the site does not hold it."""

import re
from typing import Any

_OUT_OF_DOCS = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./[^)]+\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return _OUT_OF_DOCS.sub(r"\1", markdown)
