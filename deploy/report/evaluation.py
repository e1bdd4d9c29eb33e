"""What `bvblend eval` prints and draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.evaluation.comparison import Difference, Power
from deploy.evaluation.measure import Measured, depths
from deploy.evaluation.result import EvaluationResult
from deploy.report.summary import picture_text, png
from deploy.report.visible import one_line
from moments_service import durable

_INK, _FILL = "#0b7285", "#99d0d8"


def shown_result(result: EvaluationResult) -> RenderableType:
    """Measures of all prompts, pass@1 by source and cluster, lengths, and what has no reward."""
    tables = [_measures(result)]
    for what in ("source", "cluster"):
        if len(parts := result.by(what)) > 1:
            tables.append(_parts(what, parts, depths(result.groups)[-1]))
    return Group(*tables, *(Text(line) for line in notes(result)))


def notes(result: EvaluationResult) -> list[str]:
    """What stands below the tables: lengths, truncation, and the samples that are in no measure."""
    lengths, count = result.lengths(), result.samples()
    said = []
    if lengths:
        middle, most = lengths[len(lengths) // 2], lengths[-1]
        cut = f"{result.truncated():.1%} of {count} were cut at {result.how.max_tokens}"
        said.append(
            f"samples have {sum(lengths) / len(lengths):.1f} tokens, half of them {middle} or fewer, at most {most}; {cut}"
        )
    if unscored := result.unscored():
        reasons = "; ".join(f"{number} x {one_line(reason)}" for reason, number in result.reasons())
        said.append(f"{unscored} of {count} samples have no reward and are in no measure: {reasons}")
    return said


def shown_differences(first: str, second: str, found: Mapping[str, Difference]) -> Table:
    """Paired differences, all prompts first."""
    table = Table(
        box=SIMPLE_HEAD, title=Text(f"pass@1, {one_line(second)} less {one_line(first)}"), title_justify="left"
    )
    for name in ("prompts of", "common", "first", "second", "difference", "95 %"):
        table.add_column(name, justify="left" if name == "prompts of" else "right")
    for name, one in found.items():
        interval = one.interval
        sure = interval is not None and (interval.low > 0 or interval.high < 0)
        table.add_row(
            Text(one_line(name) or "all sources"),
            str(one.prompts),
            f"{one.first:.3f}",
            f"{one.second:.3f}",
            Text(f"{one.second - one.first:+.3f}", style="bold" if sure else ""),
            "–" if interval is None else f"{interval.low:+.3f} to {interval.high:+.3f}",
        )
    return table


def shown_power(found: Sequence[Power]) -> RenderableType:
    """How many prompts show a difference."""
    table = Table(
        box=SIMPLE_HEAD,
        title=f"prompts that show a difference of {found[0].difference:g} in pass@1",
        title_justify="left",
    )
    for name in ("samples a prompt", "the same prompts, alike", "unlike or different prompts"):
        table.add_column(name, justify="right")
    for one in found:
        table.add_row(str(one.drawn), str(one.alike), str(one.unlike))
    said = (
        "In four of five tries, in a test at 5 %. Alike: both policies find the same prompts hard, as two checkpoints of one run mostly do; "
        "what --compare finds is paired by prompt."
    )
    return Group(table, Text(said, style="dim"))


def draw_result(result: EvaluationResult, path: Path) -> None:
    """A picture of pass@k and pass^k over k, and of pass@1 by source, with intervals."""
    from matplotlib.figure import Figure  # half a second to import, and only pictures need it

    found, parts = result.measures, result.by("source")
    figure = Figure(figsize=(10, 1.6 + max(2.2, 0.28 * len(parts))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
    for sign, label, style in (("@", "pass@k: one of k", "-"), ("^", "pass^k: all of k", "--")):
        curve = [
            (k, found[name])
            for k in depths(result.groups)
            if (name := "pass@1" if k == 1 else f"pass{sign}{k}") in found
        ]
        left.plot(
            [k for k, _ in curve], [one.mean for _, one in curve], style, color=_INK, marker="o", ms=4, label=label
        )
        if all(one.exact_low is not None for _, one in curve):
            low, high = [one.exact_low for _, one in curve], [one.exact_high for _, one in curve]
            left.fill_between([k for k, _ in curve], low, high, color=_FILL, alpha=0.4, linewidth=0)
    left.set(xlabel="k", ylim=(0, 1))
    figure.suptitle(picture_text(f"{result.policy} on {result.of}"), fontsize=11)
    left.set_xscale("log", base=2)
    left.set_xticks(ks := depths(result.groups), map(str, ks))
    left.legend(frameon=False, fontsize=8)
    names = [*reversed(parts)]
    bars = [parts[name]["pass@1"] for name in names if "pass@1" in parts[name]]
    names = [name for name in names if "pass@1" in parts[name]]
    right.barh(range(len(bars)), [one.mean for one in bars], color=_FILL, height=0.62)
    for place, one in enumerate(bars):
        if one.exact_low is not None and one.exact_high is not None:
            right.plot([one.exact_low, one.exact_high], [place, place], color=_INK, lw=1.6)
    right.set_yticks(
        range(len(bars)), [picture_text(f"{name} ({parts[name]['pass@1'].prompts})") for name in names], fontsize=8
    )
    right.set(xlim=(0, 1), xlabel="pass@1 by source (prompts), 95 %")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    durable.write_bytes(path, png(figure))


def draw_differences(first: str, second: str, found: Mapping[str, Difference], path: Path) -> None:
    """A picture of paired differences with their intervals: all sources above, each one below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.32 * len(found)), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(found.values()):
        axes.plot(one.second - one.first, place, "o", color=_INK, ms=5)
        if one.interval is not None:
            axes.plot([one.interval.low, one.interval.high], [place, place], color=_INK, lw=1.6)
    names = [f"{name or 'all sources'} ({one.prompts})" for name, one in found.items()]
    axes.set_yticks(range(len(found)), [picture_text(name) for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xlabel("difference of pass@1 by source (common prompts), 95 %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    figure.suptitle(picture_text(f"{second} less {first}"), fontsize=11)
    durable.write_bytes(path, png(figure))


def _measures(result: EvaluationResult) -> Table:
    table = Table(
        box=SIMPLE_HEAD, title=Text(f"{one_line(result.policy)} on {one_line(result.of)}"), title_justify="left"
    )
    for name in ("", "mean", "95 %", "95 % (t)", "95 % (bootstrap)", "prompts"):
        table.add_column(name, justify="right" if name else "left")
    for name, one in result.measures.items():
        table.add_row(
            name,
            f"{one.mean:.3f}",
            _range(one.exact_low, one.exact_high),
            _range(one.low, one.high),
            _range(one.bootstrap_low, one.bootstrap_high),
            str(one.prompts),
        )
        if one.sampling_error is not None:
            table.add_row("  its sampling error", f"{one.sampling_error:.3f}", "", "", "", "", style="dim")
    return table


def _parts(what: str, parts: Mapping[str, Mapping[str, Measured]], most: int) -> Table:
    table = Table(box=SIMPLE_HEAD)
    last = f"pass@{most}"
    for name in (what, "pass@1", "95 %", *([last] if most > 1 else ()), "prompts"):
        table.add_column(name, justify="left" if name == what else "right")
    for name, found in parts.items():
        one, deep = found.get("pass@1"), found.get(last)
        if one is None:
            table.add_row(Text(one_line(name)), "–", "–", *(["–"] if most > 1 else ()), "0")
            continue
        deeper = ["–" if deep is None else f"{deep.mean:.3f}"] if most > 1 else []
        table.add_row(
            Text(one_line(name)), f"{one.mean:.3f}", _range(one.exact_low, one.exact_high), *deeper, str(one.prompts)
        )
    return table


def _range(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"
