"""Where everything is printed: what comes from data is text, whoever forgets it."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from deploy.report.visible import visible


class Terminal(Console):
    """A console without markup, emoji codes and highlighting; control characters of texts are shown and not executed.

    Style is given by `style=` and `Text`. Rich's own control codes, which move the cursor of a live view, are no texts.
    """

    def __init__(self, **options: Any) -> None:
        """options: of rich's Console."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed or stands in a table comes through here."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Every `Text` comes through here before it is laid out. A hostile one loses its inner styles."""
        if isinstance(renderable, Text) and (shown := visible(renderable.plain)) != renderable.plain:
            renderable = renderable.blank_copy(shown)
        return super().render(renderable, options)
