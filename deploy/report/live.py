"""What a person sees while a run goes on: a live view in a terminal, one readable line a step anywhere else."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.report.numbers import mean_of_known, shown
from deploy.report.visible import one_line, visible

PHASES = ("generate", "score", "moments", "learn", "publish")
_SPARKS = "▁▂▃▄▅▆▇█"
HISTORY = 60
"""Steps that the curves show."""
SMOOTHED = 10
"""Steps that a line of a log says the mean effective signal of."""
_CLUSTERS_SHOWN = 12
SHOWN_MOMENTS = ("mean", "variance", "mass", "weight")


class Display(Protocol):
    """Where a run reports to."""

    def note(self, text: str) -> None:
        """Something happened that is worth a line."""
        ...

    def show_step(self, row: dict[str, Any], stats: dict[str, Any]) -> None:
        """A step ended. row: its line of metrics.jsonl.    stats: of the moments service."""
        ...

    def name_clusters(self, names: Sequence[str]) -> None:
        """What each cluster holds, in a few words."""
        ...

    def close(self) -> None: ...


def create_display(console: Console, steps: int) -> Display:
    """The live view where there is a terminal, plain lines where there is none (jobs, logs, pipes)."""
    return LiveDisplay(console, steps) if console.is_terminal else PlainDisplay(console, steps)


class PlainDisplay:
    """One line a step, for logs."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps
        self._signal: deque[dict[str, Any]] = deque(maxlen=SMOOTHED)

    def note(self, text: str) -> None:
        self._print(text)

    def name_clusters(self, names: Sequence[str]) -> None:
        self._print(f"{len(names)} clusters")

    def show_step(self, row: dict[str, Any], stats: dict[str, Any]) -> None:
        self._signal.append(row)
        own, grpo = (mean_share(self._signal, f"effective_signal/{name}") for name in ("own", "grpo"))
        self._print(
            f"step {row['step'] + 1:>4}/{self._steps}  pass@1 {_of(row, 'reward/pass_at_1', '.3f')}  "
            f"reward {_of(row, 'reward/mean', '.3f')}  effective signal {own} (GRPO {grpo})  "
            f"groups that differ {_of(row, 'reward/non_uniform', '.0%')}  entropy {_of(row, 'learner/entropy')}  "
            f"{_of(row, 'tokens_per_s', '.0f')} tok/s  {_of(row, 'seconds')} s"
        )

    def close(self) -> None: ...

    def _print(self, text: str) -> None:
        # Straight to the file: a log line must neither wrap nor wait in a buffer.
        self._console.file.write(visible(text) + "\n")
        self._console.file.flush()


class LiveDisplay:
    """A view that is redrawn in place."""

    def __init__(self, console: Console, steps: int) -> None:
        self._view = RunView(steps)
        self._live = Live(Text("starting …"), console=console, refresh_per_second=4, transient=False)
        self._live.start()

    def note(self, text: str) -> None:
        self._live.console.print(Text.assemble(("· ", "dim"), visible(text)))

    def name_clusters(self, names: Sequence[str]) -> None:
        self._view.names = names

    def show_step(self, row: dict[str, Any], stats: dict[str, Any]) -> None:
        self._view.add(row)
        self._live.update(self._view.draw(stats))

    def close(self) -> None:
        self._live.stop()


class RunView:
    """A run in one picture: progress, curves, families, phases, clusters."""

    def __init__(self, steps: int) -> None:
        """steps: of the whole run."""
        self.names: Sequence[str] = ()
        """What each cluster holds, in a few words."""
        self._steps = steps
        self._row: dict[str, Any] = {}
        self._pass_at_1: deque[Any] = deque(maxlen=HISTORY)
        self._sources: dict[str, deque[Any]] = {}
        self._signal: deque[dict[str, Any]] = deque(maxlen=HISTORY)

    def add(self, row: dict[str, Any]) -> None:
        """A step ended. row: its line of metrics.jsonl; what it does not have, and NaN, is shown as a dash."""
        self._row = row
        self._pass_at_1.append(row.get("reward/pass_at_1"))
        self._signal.append(row)
        for key, value in row.items():
            if key.startswith("pass_at_1/"):
                self._sources.setdefault(key.removeprefix("pass_at_1/"), deque(maxlen=10)).append(value)

    def draw(self, stats: dict[str, Any]) -> RenderableType:
        """The picture after the last step that was added, at least one. stats: of the moments service."""
        columns = Table.grid(expand=True, padding=(0, 1))
        columns.add_column(ratio=2)
        columns.add_column(ratio=3)
        columns.add_row(
            Panel(self._families(), title="pass@1 by family, last 10 steps", border_style="dim"),
            Panel(self._clusters(stats), title="clusters and their moments", border_style="dim"),
        )
        return Panel(
            Group(self._head(self._row), columns),
            title=f"bvblend · step {self._row['step'] + 1} of {self._steps}",
            border_style="cyan",
        )

    def _head(self, row: dict[str, Any]) -> RenderableType:
        own, grpo = (mean_share(self._signal, f"effective_signal/{name}") for name in ("own", "grpo"))
        differ = mean_share(self._signal, "reward/non_uniform")
        phases = row["phases"] if isinstance(row.get("phases"), dict) else {}
        grid = Table.grid(expand=True, padding=(0, 2))
        grid.add_column(width=10, style="bold")
        grid.add_column(ratio=1)
        grid.add_row("progress", ProgressBar(total=self._steps, completed=row["step"] + 1))
        grid.add_row("pass@1", Text(f"{sparkline(self._pass_at_1)} {_of(row, 'reward/pass_at_1')}", style="green"))
        signal = Text.assemble(
            (f"{own} of a perfect baseline's", "cyan"), f"   GRPO's {grpo}   rewards differ in {differ} of the groups"
        )
        grid.add_row("signal", signal)
        parts = "  ".join(f"{name} {_of({name: 0.0} | phases, name)}" for name in PHASES)
        grid.add_row("seconds", f"{_of(row, 'seconds')}  =  {parts}")
        grid.add_row(
            "policy",
            f"{_of(row, 'tokens_per_s', '.0f')} tok/s   entropy {_of(row, 'learner/entropy')}   "
            f"grad {_of(row, 'learner/grad_norm')}",
        )
        return grid

    def _families(self) -> Table:
        table = Table.grid(padding=(0, 1), expand=True)
        for column in ("left", "left", "right"):
            table.add_column(justify=column)
        for source, values in sorted(self._sources.items()):
            mean = mean_of_known(values)
            table.add_row(one_line(source), ProgressBar(total=1.0, completed=mean or 0.0, width=16), shown(mean))
        return table

    def _clusters(self, stats: dict[str, Any]) -> Table:
        table = Table(box=None, expand=True, padding=(0, 1), header_style="dim")
        table.add_column("mostly")
        for name in ("reward", "± sd", "mass", "trust"):
            table.add_column(name, justify="right")
        moments = stats["clusters"]
        heaviest = sorted(range(len(moments["mass"])), key=lambda k: -moments["mass"][k])[:_CLUSTERS_SHOWN]
        for k in sorted(heaviest):  # by number, so that rows stay where they are
            name = one_line(self.names[k]) if k < len(self.names) else ""
            mean, variance, mass, weight = (moments[column][k] for column in SHOWN_MOMENTS)
            numbers = (mean, max(variance, 0.0) ** 0.5, mass, weight)
            table.add_row(f"{k:>2} {name}", *(shown(n, ".2f" if n < 10 else ".0f") for n in numbers))
        return table


def mean_share(rows: Iterable[Mapping[str, Any]], name: str) -> str:
    """Mean of a share over steps; of one batch an estimate may lie outside of [0, 1]."""
    mean = mean_of_known(row.get(name) for row in rows)
    return shown(None if mean is None else min(max(mean, 0.0), 1.0), ".0%")


def sparkline(values: Sequence[Any] | deque[Any]) -> str:
    """Values in [0, 1] as a line of bars, with a gap where there is none."""
    return "".join(map(_spark, values))


def _spark(value: Any) -> str:
    if shown(value) == "–":
        return " "
    return _SPARKS[min(int(min(max(value, 0.0), 1.0) * len(_SPARKS)), len(_SPARKS) - 1)]


def _of(row: Mapping[str, Any], name: str, form: str = ".2f") -> str:
    return shown(row.get(name), form)
