"""Long work that is no training run: a bar where there is a terminal, a line now and then where there is none."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from moments_service.progress import Progress, silent

LINE_EVERY_S = 10.0
EMBEDDING = "prompts embedded"


@contextmanager
def progress(console: Console, what: str) -> Iterator[Progress]:
    """A bar, gone when the work is done; without a terminal, lines."""
    if console.is_terminal:
        with bar(console, what) as advance:
            yield advance
    else:
        yield lines(partial(print, file=console.file, flush=True), what)


@contextmanager
def bar(console: Console, what: str) -> Iterator[Progress]:
    """A bar, gone when the work is done; without a terminal, nothing."""
    if not console.is_terminal:
        yield silent
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, of: bars.update(task, completed=done, total=of)


def lines(write: Callable[[str], object], what: str) -> Progress:
    """A line every LINE_EVERY_S; work that is done sooner says nothing."""
    spoken = time.monotonic()

    def advance(done: int, of: int) -> None:
        nonlocal spoken
        if time.monotonic() - spoken > LINE_EVERY_S:
            spoken = time.monotonic()
            write(f"{what}: {done:,} of {of:,}")

    return advance
