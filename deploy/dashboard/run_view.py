"""What the page shows of a run beside its curves, all at once: a page that follows a run should cost next to nothing."""

import re
from typing import Any

from deploy.report.live import PHASES
from deploy.report.visible import one_line
from deploy.rundir.evaluated import evaluations_of
from deploy.rundir.lines import read_object
from deploy.rundir.open_run import OpenRun
from deploy.rundir.shapes import Advised, fits

LAST_STEPS = 10
"""Steps that phases and histograms are averaged over."""
HISTOGRAMS = {"mismatch": "learner/mismatch_share/", "staleness": "staleness/"}
"""Series that are the bins of one histogram, by what they begin with."""
_BIN = re.compile(r"[<>]?=?[0-9]{1,9}(\.[0-9]{1,9})?(e-?[0-9]{1,2})?")
ALARMS_SHOWN = 6
EVALUATIONS_SHOWN = 12
REASONS_SHOWN = 6


def overview(run: OpenRun) -> dict[str, Any]:
    """The run's status, the names of its series, its phases, its newest alarms and evaluations; what its rewards advise."""
    alarms = run.alarms()
    evaluations = [row for row in run.evaluations() if isinstance(row.get("pass_at_1"), float)]
    return run.status() | {
        "series": run.metrics.names(),
        "phases": phases(run),
        "histograms": {name: shares(run, prefix) for name, prefix in HISTOGRAMS.items()},
        "alarms": alarms[-ALARMS_SHOWN:][::-1],
        "alarm_count": len(alarms),
        "evaluations": [
            {
                key: row.get(key)
                for key in ("step", "split", "pass_at_1", "low", "high", "half_width", "prompts", "errors")
            }
            for row in evaluations[-EVALUATIONS_SHOWN:]
        ],
        "advice": advice(run),
    }


def evaluated(run: OpenRun) -> dict[str, Any]:
    """{evaluated}: what `bvblend eval` left in the run's directory, newest first."""
    found = evaluations_of(run.directory)
    return {"evaluated": [one | {key: one_line(one[key]) for key in ("policy", "of")} for one in found]}


def advice(run: OpenRun) -> list[str]:
    """What the end of the run said its rewards advise, in sentences; none before the end."""
    summary = read_object(run.directory.summary)
    reasons: list[str] = summary["advice"]["reasons"] if fits(summary, Advised) else []
    return [one_line(reason) for reason in reasons[:REASONS_SHOWN]]


def phases(run: OpenRun) -> dict[str, float]:
    """Mean seconds of each phase over the last steps, in the order of a step."""
    means = _means(run, "phases/")
    known = [name for name in PHASES if name in means]
    return {name: means[name] for name in (*known, *sorted(means.keys() - known))}


def shares(run: OpenRun, prefix: str) -> dict[str, float]:
    """Mean share of each bin of a histogram over the last steps, in their order; none where the run does not say."""
    means = {name: mean for name, mean in _means(run, prefix).items() if _BIN.fullmatch(name)}
    bins = sorted(means, key=lambda name: (name.startswith(">"), float(name.lstrip("<>="))))
    return {name: means[name] for name in bins}


def _means(run: OpenRun, prefix: str) -> dict[str, float]:
    """Mean over the last steps of every series that begins with `prefix`, by the rest of its name."""
    names = [name for name in run.metrics.names() if name.startswith(prefix)]
    means = {name.removeprefix(prefix): run.metrics.mean_of_last(name, LAST_STEPS) for name in names}
    return {name: mean for name, mean in means.items() if mean is not None}
