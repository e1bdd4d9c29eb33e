"""The end of a run in numbers, words and a picture: summary.json, summary.md, summary.png."""

import io
import re
import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.table import Table

from deploy.cluster.environment import machine, versions
from deploy.report.advice import advice_sentences
from deploy.report.live import PHASES
from deploy.report.numbers import shown
from deploy.report.visible import one_line
from deploy.rundir.evaluation import Evaluation
from deploy.rundir.layout import RunDirectory
from moments_service import durable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = ("reward/pass_at_1", "effective_signal/own", "effective_signal/grpo", "reward/non_uniform")
SPLITS = ("train", "held_out")
PICTURE_CHARS = 60
"""Of a name in a picture; longer ones would leave no room for it."""
WINDOW = 10
"""Steps that a curve is smoothed over."""

_shown = partial(shown, form=".3f")


def summarise(
    directory: RunDirectory,
    start: dict[str, Evaluation],
    end: dict[str, Evaluation],
    estimator: str,
    steps: int = 2**62,
    advice: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write all three files and return what summary.json holds.

    start, end: evaluations by split; without those that have no prompts.    steps: that the policy was trained for; rows of later ones are
    of a history that a resume left. advice: of the run's rewards, as JSON. What was not measured is null.
    """
    rows = [row for row in directory.read_metrics() if row["step"] < steps]
    summary = {
        "estimator": estimator,
        **{split: _before_after(start, end, split) for split in SPLITS},
        "intervals": {
            split: {"start": _interval(start.get(split)), "end": _interval(end.get(split))} for split in SPLITS
        },
        "sources": {
            source: {split: _before_after(start, end, split, source) for split in SPLITS}
            for source in sorted({source for evaluation in start.values() for source in evaluation.sources})
        },
        "steps": len(rows),
        "seconds": sum(row["seconds"] for row in rows),
        "phases": {phase: _mean([row["phases"].get(phase) or 0.0 for row in rows]) for phase in PHASES},
        "signal_ratio": {
            "own": _mean(column(rows, "signal/own")),
            "grpo": _mean(column(rows, "signal/grpo")),
        },
        "effective_signal": {name: _measured(rows, f"effective_signal/{name}") for name in ("own", "grpo")},
        "non_uniform_groups": _measured(rows, "reward/non_uniform"),
        "advice": advice,
        "versions": versions(),
        "machine": machine(),
    }
    durable.write_json(directory.summary, summary, indent=2)
    durable.write_text(directory.path / "summary.md", markdown(summary))
    durable.write_bytes(directory.path / "summary.png", drawn(summary, rows))
    return summary


def _before_after(
    start: dict[str, Evaluation], end: dict[str, Evaluation], split: str, source: str | None = None
) -> dict[str, float | None]:
    """pass@1 of a split, or of one source in it."""

    def measured(evaluation: Evaluation | None) -> float | None:
        if evaluation is None:
            return None
        return evaluation.pass_at_1 if source is None else evaluation.sources.get(source)

    return {"start": measured(start.get(split)), "end": measured(end.get(split))}


def _interval(evaluation: Evaluation | None) -> tuple[float, float] | None:
    """Of pass@1 of a split at 95 %."""
    if evaluation is None or evaluation.low is None or evaluation.high is None:
        return None
    return evaluation.low, evaluation.high


def markdown(summary: dict[str, Any]) -> str:
    """The before/after table and what the estimator made of the samples."""
    lines = [
        f"# {summary['estimator']}: {summary['steps']} steps in {summary['seconds'] / 60:.1f} minutes",
        "",
        "| pass@1 | train, start | train, end | held out, start | held out, end |",
        "|---|---|---|---|---|",
    ]
    for name, *values in table_rows(summary):
        lines.append(f"| {_cell(name)} | " + " | ".join(values) + " |")
    return "\n".join([*lines, "", *end_sentences(summary), ""])


def end_sentences(summary: dict[str, Any]) -> list[str]:
    """What the samples were worth under the run's estimator, and what its rewards advise."""
    advised = advice_sentences(summary["advice"])
    return [signal_sentence(summary), *([""] if advised else []), *advised]


def signal_sentence(summary: dict[str, Any]) -> str:
    """How well the advantages were directed, beside those that GRPO would have given."""
    own, grpo = (shown(summary["effective_signal"][name], ".0%") for name in ("own", "grpo"))
    return (
        f"The advantages of {one_line(summary['estimator'])} had {own} of the signal to noise that a perfect baseline would have had, those of "
        f"GRPO on the same groups {grpo}. In {shown(summary['non_uniform_groups'], '.0%')} of the groups rewards differed."
    )


def table_rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """Name and four numbers a source, the total last, and below it its intervals."""
    rows = []
    for source, splits in summary["sources"].items():
        rows.append((one_line(source), *(_shown(splits[split][when]) for split in SPLITS for when in ("start", "end"))))
    total = (_shown(summary[split][when]) for split in SPLITS for when in ("start", "end"))
    found = (summary["intervals"][split][when] for split in SPLITS for when in ("start", "end"))
    sure = ("–" if interval is None else "{:.2f}–{:.2f}".format(*interval) for interval in found)
    return [*rows, ("all", *total), ("95 %", *sure)]


def rich_table(summary: dict[str, Any]) -> Table:
    """The before/after table for a terminal."""
    table = Table(title="pass@1 before and after", title_style="bold")
    table.add_column("source")
    for name in ("train, start", "train, end", "held out, start", "held out, end"):
        table.add_column(name, justify="right", style="green" if name.endswith("end") else None)
    rows = table_rows(summary)
    for number, row in enumerate(rows):
        style = {len(rows) - 2: "bold", len(rows) - 1: "dim"}.get(number)
        table.add_row(*row, end_section=number == len(rows) - 3, style=style)
    return table


def drawn(summary: dict[str, Any], rows: Sequence[dict[str, Any]]) -> bytes:
    """summary.png: the curve, the effective signal, and every source before and after."""
    from matplotlib.figure import Figure  # half a second to import, and only the end of a run needs it

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    curve, signal, bars = figure.subplots(1, 3, width_ratios=[1.1, 1, 1.2])
    # A step of which one of the curves has nothing to say is left out of all.
    rows = [row for row in rows if all(row.get(name) is not None for name in CURVES)]
    steps = [row["step"] + 1 for row in rows]
    own, grpo = "#0b7285", "#c92a2a"

    rewards = [row["reward/pass_at_1"] for row in rows]
    curve.plot(steps, rewards, color=own, alpha=0.25, linewidth=1)
    curve.plot(steps, smooth(rewards), color=own, linewidth=2)
    curve.set(title="pass@1 while training", xlabel="policy step", ylim=(0, None))

    signal.plot(
        steps,
        smooth([row["effective_signal/own"] for row in rows]),
        color=own,
        linewidth=2,
        label=picture_text(summary["estimator"]),
    )
    other = smooth([row["effective_signal/grpo"] for row in rows])
    signal.plot(steps, other, color=grpo, linewidth=2, label="GRPO, same groups")
    differ = smooth([row["reward/non_uniform"] for row in rows])
    signal.plot(steps, differ, color="#868e96", linewidth=1, linestyle="--", label="groups whose rewards differ")
    signal.set(title="effective signal, share of a perfect baseline's", xlabel="policy step", ylim=(0, 1.05))
    signal.legend(frameon=False, fontsize=8)

    names = list(summary["sources"])
    places = range(len(names))
    for when, offset, color in (("start", 0.2, "#adb5bd"), ("end", -0.2, own)):
        heights = [summary["sources"][name]["train"][when] or 0.0 for name in names]
        bars.barh([place + offset for place in places], heights, height=0.38, color=color, label=f"train, {when}")
    held = [summary["sources"][name]["held_out"]["end"] or 0.0 for name in names]
    bars.scatter(
        held, [place - 0.2 for place in places], marker="|", s=90, color="#212529", label="held out, end", zorder=3
    )
    bars.set_yticks(list(places), [picture_text(name) for name in names])
    bars.set(title="pass@1 by source", xlim=(0, 1))
    bars.legend(frameon=False, fontsize=8)
    for axes in (curve, signal, bars):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    return png(figure)


def picture_text(text: str) -> str:
    """A text as matplotlib draws it, shortened.

    A dollar would begin a formula, and what is none would be an error.
    """
    name = one_line(text)
    return (name if len(name) <= PICTURE_CHARS else f"{name[: PICTURE_CHARS - 1]}…").replace("$", r"\$")


def _cell(name: str) -> str:
    """A name as a cell of a Markdown table."""
    return re.sub(r"([\\|<])", r"\\\1", name)


def png(figure: "Figure") -> bytes:
    """A figure as a picture."""
    picture = io.BytesIO()
    with warnings.catch_warnings():
        # A script that matplotlib's font does not have is drawn as boxes; the numbers beside it are right.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def column(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    """A series of metrics.jsonl, without the steps that have no such number."""
    return [value for row in rows if (value := row.get(name)) is not None]


def _measured(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    """Mean over the steps; None where none has it. What one batch's estimate has outside of [0, 1] averages out."""
    known = column(rows, name)
    return min(max(_mean(known), 0.0), 1.0) if known else None


def smooth(values: Sequence[float]) -> list[float]:
    """Mean of the last `WINDOW` values at each place."""
    return [_mean(values[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(values))]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
