"""Long work that is no training run: a bar where there is a terminal, a line now and then where there is none."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

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


class _Rate(ProgressColumn):
    """How many are done in a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s")


def lines(write: Callable[[str], object], what: str) -> Progress:
    """A line every LINE_EVERY_S, with the rate since the line before; work that is done sooner says nothing."""
    spoken, spoken_of = time.monotonic(), 0

    def advance(done: int, of: int) -> None:
        nonlocal spoken, spoken_of
        passed = time.monotonic() - spoken
        if passed > LINE_EVERY_S:
            rate = (done - spoken_of) / passed
            spoken, spoken_of = time.monotonic(), done
            left = f", about {_shown_s((of - done) / rate)} left" if rate > 0 else ""
            write(f"{what}: {done:,} of {of:,}, {rate:,.0f} a second{left}")

    return advance


def _shown_s(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
