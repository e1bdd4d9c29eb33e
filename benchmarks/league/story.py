"""What the league's runs say: sentences and tables, every number from the runs."""

import re
from collections import defaultdict
from statistics import fmean
from typing import Any

from benchmarks.league.found import (
    OURS,
    RIVALS,
    SIZES,
    TASKS,
    Found,
    best_rival,
    level_after,
    levels,
    mean_curve,
    mean_level,
    samples_to,
)
from benchmarks.league.table import half_width

Pipeline = dict[str, list[dict[str, Any]]]
"""What `bvblend compare` found, by estimator a run for each seed."""


def document(found: Found, pipeline: Pipeline, advice: dict[str, Any]) -> str:
    """What stands between the markers."""
    parts = [
        *sentences(found),
        through_the_pipeline(pipeline),
        "",
        "### Nowhere worse",
        "",
        *never_hurts(found),
        "",
        "### Everybody on `mixed` at G = 2",
        "",
        *everyone(found, "mixed", 2),
    ]
    if standing := frozen(found):
        parts += ["", "### At policies that stand still", "",
                  "Signal to noise of the gradient as a share of RLOO's, and in brackets the root mean square error of the baseline, G = 4, after 60 batches of history.", "", *standing]  # fmt: skip
    return (
        "\n".join([*parts, *orders(found), *filtered(found), *lengths(found), *foretold(advice), *left_out(found)])
        + "\n"
    )


def through_the_pipeline(pipeline: Pipeline) -> str:
    """The headline with vLLM, Ray and FSDP."""
    ends = {name: [run["held_out"]["end"] for run in runs] for name, runs in pipeline.items()}
    ours, grpo = ends[OURS], ends["grpo"]
    less = [one - other for one, other in zip(ours, grpo, strict=True)]
    return (
        f"- **The whole pipeline says the same**: vLLM, Ray, FSDP and the recipe `mixed`, {len(ours)} seeds, 120 steps: {fmean(ours):.3f} under the default and "
        f"{fmean(grpo):.3f} under GRPO held out ({fmean(less):+.3f} ± {half_width(less):.3f}), from sampled completions "
        "([compare_mixed.json](../benchmarks/results/compare_mixed.json), [curves](images/compare_mixed.png))."
    )


def sentences(found: Found) -> list[str]:
    """What is to be remembered, with its numbers."""
    told = (no_harm, helps, what_clusters_do, many_prompts, the_default_before, where_nothing_helps)
    return [tell(found) for tell in told]


def headline(found: Found, pipeline: Pipeline) -> str:
    """For the README."""
    ours, grpo, batch = (found.of("mixed", 2, name) for name in (OURS, "grpo", "batch_mean"))
    gain, width = found.less(ours, grpo, 3)
    over_batch, batch_width = found.less(ours, batch, 3)
    whole, level = mean_curve(grpo)[-1]
    reached = samples_to(ours, level)
    cells = [best_rival(found, task, size)[1] for task in TASKS for size in SIZES]
    lost = sum(mean + width < 0 for mean, width in cells)
    return f"""Thirteen skills of mixed difficulty, every prompt new, groups of 2, {len(ours)} seeds: held-out pass@1 goes to **{mean_level(ours):.2f}** with the default, to {mean_level(grpo):.2f} with
GRPO ({gain:+.2f} ± {width:.2f}) and to {mean_level(batch):.2f} with the batch's mean ({over_batch:+.2f} ± {batch_width:.2f}), after {whole:,} completions; {"never" if reached is None else f"{reached:,} of them"} suffice to stand where GRPO ends, and knowing
every prompt's exact chance of success gives no more ({mean_level(found.of("mixed", 2, "oracle")):.2f}). On three tasks at groups of 1 to 8 the default is below the best of GRPO, RLOO and batch
mean by more than its interval in {lost} of {len(cells)} cells. Where prompts of a cluster are unlike each other, or groups large, history cannot help, and `bvblend advise` says so
beforehand. Policies of under a million parameters, trained in an in-process [league](docs/evidence.md) of the product's own parts; through the whole
pipeline, {len(pipeline[OURS])} seeds, {fmean(run["held_out"]["end"] for run in pipeline[OURS]):.2f} and {fmean(run["held_out"]["end"] for run in pipeline["grpo"]):.2f}."""


def no_harm(found: Found) -> str:
    cells = []
    for task in TASKS:
        for size in SIZES:
            rival, (mean, width) = best_rival(found, task, size)
            cells.append((mean, width, f"`{task}`, G = {size}, `{rival}`"))
    lost = [f"{where}: {mean:+.3f} ± {width:.3f}" for mean, width, where in cells if mean + width < 0]
    mean, width, where = min(cells)
    if lost:
        return f"- **It hurts in {len(lost)} of {len(cells)} cells** beside the best rival, chosen afterwards: {'; '.join(lost)}."
    return (
        f"- **It does not hurt.** In none of {len(cells)} cells is the default below the best of GRPO, RLOO and batch mean, chosen afterwards, "
        f"by more than its interval. The largest loss is {-mean:.3f} ± {width:.3f} ({where})."
    )


def helps(found: Found) -> str:
    ours, grpo, batch = (found.of("mixed", 2, name) for name in (OURS, "grpo", "batch_mean"))
    gain, width = found.less(ours, grpo, 3)
    over_batch, batch_width = found.less(ours, batch, 3)
    whole, level = mean_curve(grpo)[-1]
    reached = samples_to(ours, level)
    share = "never" if reached is None else f"after {reached:,} of {whole:,} completions ({reached / whole:.2f})"
    return (
        f"- **It helps where difficulty is mixed and groups are small.** On `mixed` at G = 2 it ends at {mean_level(ours):.3f}, GRPO at "
        f"{mean_level(grpo):.3f} ({gain:+.3f} ± {width:.3f}) and the batch's mean at {mean_level(batch):.3f} ({over_batch:+.3f} ± {batch_width:.3f}). "
        f"It stands where GRPO ends {share}. A baseline that knows every prompt's exact chance ends at {found.cell('mixed', 2, 'oracle')}: "
        "there is nothing left to win."
    )


def what_clusters_do(found: Found) -> str:
    ends = {name: found.of("mixed", 2, OURS, name) for name in ("shuffled:embedding:32", "one", "source")}
    told = [f"{words} {mean_level(ends[name]):.3f}" for name, words in (
        ("shuffled:embedding:32", "with the same clusters dealt out at random it ends at"),
        ("one", "with one cluster for all at"),
        ("source", "with the source's label in their place at"),
    ) if ends[name]]  # fmt: skip
    return f"- **Clusters do a part of it**: {', '.join(told)}."


def many_prompts(found: Found) -> str:
    cells = {(size, name): found.of("mixed", size, name) for size in SIZES for name in (OURS, *RIVALS)}
    size, name = max((key for key in cells if cells[key]), key=lambda key: mean_level(cells[key]))
    whole = mean_curve(cells[size, name])[-1][0]
    return (
        f"- **Many prompts beat many samples of each.** The best of `mixed` after {whole:,} completions is `{name}` at G = {size}, {mean_level(cells[size, name]):.3f}; "
        f"at G = 8 the best has {max(mean_level(runs) for (size, _), runs in cells.items() if size == 8 and runs):.3f}. (`grpo` at G = 1 is REINFORCE without any baseline.)"
    )


def the_default_before(found: Found) -> str:
    def ends(name: str) -> str:
        return " and ".join(found.cell("fresh", size, name) for size in (2, 8))

    return (
        f"- **The default before, `bv_blend: safe`, did hurt**: on `fresh` it ends at {ends('bv_blend:safe')} (G = 2 and 8), GRPO at {ends('grpo')}, "
        f"the default now at {ends(OURS)}."
    )


def where_nothing_helps(found: Found) -> str:
    trained = {name: fmean(run["train"] for run in found.of("cold_start", 2, name).values()) for name in (OURS, "grpo")}
    return (
        f"- **Where no baseline helps**: held out, `cold_start` and `fresh` end no better with the exact chance as baseline ({found.cell('cold_start', 2, 'oracle')} and "
        f"{found.cell('fresh', 2, 'oracle')} at G = 2) than under GRPO ({found.cell('cold_start', 2, 'grpo')} and {found.cell('fresh', 2, 'grpo')}) by more than seeds differ. "
        f"On its training prompts, which come 3 to 5 times, `cold_start` ends at {trained[OURS]:.3f} under the default and at {trained['grpo']:.3f} under GRPO."
    )


def never_hurts(found: Found) -> list[str]:
    """The default beside the better of its rivals, on every task at every size."""
    lines = [
        "| task | G | `hierarchical` | `grpo` | `rloo` | batch mean | exact p | less the best of the three |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        for size in SIZES:
            rival, (mean, width) = best_rival(found, task, size)
            cells = [found.cell(task, size, name) for name in (OURS, *RIVALS, "oracle")]
            lines.append(f"| `{task}` | {size} | {' | '.join(cells)} | {mean:+.3f} ± {width:.3f} (`{rival}`) |")
    return lines


def everyone(found: Found, task: str, size: int) -> list[str]:
    """All that ran on a task at a size, best first, with the paired difference from GRPO."""
    grpo = found.of(task, size, "grpo")
    keys = {(run["estimator"], run["clusters"]) for run in found.runs
            if (run["task"], run["group_size"], run["order"], run["filter"]) == (task, size, "shuffled", "none")}  # fmt: skip
    rows = []
    for estimator, clusters in keys:
        runs = found.of(task, size, estimator, clusters)
        mean, width = found.less(runs, grpo, len(keys) - 1)
        name = f"`{estimator}`" + ("" if clusters == TASKS[task] else f", clusters `{clusters}`")
        area, passed = (fmean(run[key] for run in runs.values()) for key in ("area", "held_out_pass_at_8"))
        less = "–" if runs == grpo else f"{mean:+.3f} ± {width:.3f}"
        rows.append(
            (
                fmean(levels(runs)),
                f"| {name} | {len(runs)} | {fmean(levels(runs)):.3f} | {passed:.3f} | {area:.3f} | {less} |",
            )
        )
    head = ["| estimator | n | pass@1 | pass@8 | area | less `grpo` |", "|---|---|---|---|---|---|"]
    return head + [line for _, line in sorted(rows, key=lambda row: (-row[0], row[1]))]


def frozen(found: Found) -> list[str]:
    """At policies that stand still: error of the baseline, and signal to noise of the gradient beside RLOO's."""
    cells: dict[tuple[str, int, str], list[tuple[float, float]]] = defaultdict(list)
    for run in found.runs:
        for step, by_estimator in run.get("frozen", {}).items():
            for name, what in by_estimator.items():
                cells[run["task"], int(step), name].append((what["baseline_error"], what["efficiency"]))
    if not cells:
        return []
    steps = sorted({(task, step) for task, step, _ in cells})
    lines = [
        "| estimator | " + " | ".join(f"`{task}`, step {step}" for task, step in steps) + " |",
        "|---|" + "---|" * len(steps),
    ]
    for name in sorted({name for _, _, name in cells}):
        row = []
        for task, step in steps:
            errors, gains = zip(*cells[task, step, name], strict=True)
            row.append(f"{fmean(gains):.2f} ({fmean(errors):.3f})")
        lines.append(f"| `{name}` | " + " | ".join(row) + " |")
    return lines


def orders(found: Found) -> list[str]:
    """Orders of the prompts on the cold start."""
    known = [order for order in ("signal", "mopps", "greso", "kalman") if found.of("cold_start", 2, OURS, order=order)]
    if not known:
        return []

    def cell(order: str, name: str) -> str:
        runs = found.of("cold_start", 2, name, order=order)
        return f"{fmean(run['train'] for run in runs.values()):.3f} / {mean_level(runs):.3f}" if runs else "–"

    rows = [f"| `{order}` | {cell(order, OURS)} | {cell(order, 'grpo')} |" for order in ("shuffled", *known)]
    head = ["| order | `hierarchical` | `grpo` |", "|---|---|---|"]
    return [
        "",
        "### Orders of the prompts",
        "",
        "`cold_start`, G = 2: pass@1 on training prompts / held out.",
        "",
        *head,
        *rows,
    ]


def filtered(found: Found) -> list[str]:
    """Sampling on until a batch holds no group of equal rewards, by what it costs."""
    rows = []
    for size in SIZES:
        runs = found.of("mixed", size, "grpo", kept="dapo")
        if not runs:
            continue
        ours, grpo = (mean_curve(found.of("mixed", size, name))[-1] for name in (OURS, "grpo"))
        whole = ours[0]
        then = fmean(level_after(run["curve"], whole) for run in runs.values())
        sampled, end = (fmean(run["curve"][-1][place] for run in runs.values()) for place in (0, 1))
        rows.append(f"| {size} | {ours[1]:.3f} | {grpo[1]:.3f} | {then:.3f} | {end:.3f} after {sampled:,.0f} |")
    if not rows:
        return []
    return [
        "",
        "### Groups of equal rewards sampled away",
        "",
        "`mixed`, `prompts.filter: dapo`: as many groups are trained on, and many more are sampled. Held-out pass@1 (of the part that the",
        f"curves are of) after {whole:,} sampled completions, and at the filter's own end.",
        "",
        "| G | `hierarchical` | `grpo` | `grpo`, filter | `grpo`, filter, at its end |",
        "|---|---|---|---|---|",
        *rows,
    ]


def lengths(found: Found) -> list[str]:
    """Completions of very different lengths."""
    names = sorted({run["estimator"] for run in found.runs if run["task"] == "lengths"})
    if not names:
        return []

    def cell(size: int, name: str) -> str:
        areas = [run["area"] for run in found.of("lengths", size, name).values()]
        return f"{fmean(areas):.3f} ± {half_width(areas):.3f}" if len(areas) > 1 else "–"

    rows = [f"| `{name}` | {cell(2, name)} | {cell(8, name)} |" for name in names]
    about = "`lengths`, 30 steps: area under the held-out curve, since all solve nearly all of it in the end."
    return [
        "",
        "### Lengths that differ by 40 times",
        "",
        about,
        "",
        "| estimator | G = 2 | G = 8 |",
        "|---|---|---|",
        *rows,
    ]


def foretold(advice: dict[str, Any]) -> list[str]:
    """What `bvblend advise` made of the log of one short GRPO run, beside what the league found."""
    figures = {row["name"]: row["value"] for row in advice["figures"]}
    rows = []
    for each in advice["comparisons"]:
        best = max(each["areas"], key=each["areas"].__getitem__)
        lacks = each["areas"][best] - each["areas"][each["advised"]]
        rows.append(f"| `{each['task']}` | {each['group_size']} | `{each['advised']}` | `{best}` | {lacks:.3f} |")
    return [
        "",
        "### What advice from a log is worth",
        "",
        "`bvblend advise` read the log of one GRPO run of 30 steps at G = 4 of each task; `lengths` ran after it was written. Of the pairs of estimators",
        f"that the league tells apart, {figures['all: pairs in the foretold order']:.0%} stand in the order that it foretold; what its best estimator lacks to the one that had the",
        "largest area under the held-out curve:",
        "",
        "| task | G | foretold best | best | area lacking |",
        "|---|---|---|---|---|",
        *rows,
    ]


def left_out(found: Found) -> list[str]:
    """Variants of the default that were tried."""
    tried = sorted(
        {run["estimator"] for run in found.runs if re.search("score_weights|scale=prompt", run["estimator"])}
    )
    if not tried:
        return []
    where = [(task, size) for task in TASKS for size in (2, 8)]
    head = [f"| | {' | '.join(f'`{task}`, G = {size}' for task, size in where)} |", "|---|" + "---|" * len(where)]
    rows = [
        f"| `{name}` | {' | '.join(found.cell(task, size, name) for task, size in where)} |" for name in (OURS, *tried)
    ]
    about = (
        "Rewards weighted by how much their completion moves the policy (`score_weights`), and a scale for each prompt from the group's other "
        "rewards (`scale=prompt`; at G = 2 it is the cluster's). No difference is larger than its interval."
    )
    return ["", "### Tried and left out", "", about, "", *head, *rows]
