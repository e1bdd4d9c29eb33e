"""`bvblend runs`: one line a run."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from deploy.report.numbers import shown
from deploy.report.top import COLORS
from deploy.report.visible import one_line


def runs_table(rows: Sequence[dict[str, Any]]) -> Table:
    """rows: as `Catalog.rows` gives them."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), expand=True)
    table.add_column(f"{len(rows)} runs", overflow="fold", ratio=1)
    for name, width in (("state", 7), ("estimator", 12)):
        table.add_column(name, no_wrap=True, width=width)
    for name, width in (("steps", 7), ("pass@1", 6), ("held out", 9)):
        table.add_column(name, justify="right", no_wrap=True, width=width)
    for row in rows:
        state = row["state"]
        run = Text(one_line(row["name"]))
        if row["problem"] is not None:
            run.append(f"\n{one_line(row['problem'])}", style="red")
        table.add_row(
            run,
            Text(state, style=COLORS[state]),
            one_line(row["estimator"]),
            f"{row['steps']}/{row['planned'] or '–'}",
            shown(row["pass_at_1"]),
            "→".join(map(shown, row["held_out"])) if row["held_out"] else "–",
        )
    return table
