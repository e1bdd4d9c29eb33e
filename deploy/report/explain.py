"""What `bvblend explain` and `bvblend replay` print."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.config.recipe import ConfigError, load_moments_config
from deploy.report.numbers import shown
from deploy.report.progress import EMBEDDING, progress
from deploy.report.visible import one_line, visible
from moments_service.durable import strict_json
from moments_service.estimators.naming import configured
from moments_service.offline.explain import Explanation, Numbers
from moments_service.offline.replay import ReplayError, ReplaySummary, estimator_label, read_log, replay
from moments_service.progress import silent

_shown = partial(shown, form=".6g")


def explanation(found: Explanation, estimator: str) -> RenderableType:
    """One group for a person to read."""
    group = found.group
    head = Text()
    head.append(f"group {one_line(group.group_id)}\n", style="bold")
    head.append(
        f"source {one_line(group.source)}, cluster {found.cluster}, place {group.sequence} in the feed, {group.status.value}, sampled by "
        f"policy versions {group.policy_versions[0]} to {group.policy_versions[1]}, incarnation {found.incarnation}\n"
    )
    if found.texts is not None:
        head.append(f"\n{visible(found.texts.prompt.strip())}\n", style="italic")
    if found.texts_dropped:
        head.append("its texts, if any were kept, were dropped by the ledger's retention\n", style="yellow")
    if found.step is None:
        return Group(head, Text("in no batch yet: it waits for one, or the run ended before", style="yellow"))
    if found.recorded is None or found.recomputed is None or found.grpo is None or found.past is None:
        return Group(head, Text(f"folded into history by step {found.step}, but not trained on", style="yellow"))
    parts: list[RenderableType] = [head, _completions(found, estimator), _pieces(found, estimator)]
    same = found.recorded == found.recomputed
    parts.append(
        Text("recomputed from the ledger: the same, bit for bit", style="green")
        if same
        else Text(f"recomputed from the ledger: NOT the same: {found.recomputed}", style="bold red")
    )
    return Group(*parts)


def _completions(found: Explanation, estimator: str) -> Table:
    assert found.recorded is not None and found.grpo is not None
    group, texts = found.group, found.texts.completions if found.texts is not None else None
    parts = found.texts.reward_parts if found.texts is not None else None
    table = Table(title=f"step {found.step}", title_style="bold", title_justify="left")
    for name in ("reward", f"advantage ({estimator})", "under GRPO", "tokens"):
        table.add_column(name, justify="right")
    if parts is not None:
        table.add_column("parts of the reward")
    table.add_column("completion" if texts is not None else "error")
    for i, reward in enumerate(group.rewards):
        said = group.errors[i] if reward is None else (texts[i].strip() if texts is not None else "")
        table.add_row(
            _shown(reward), _shown(found.recorded.advantages[i]), _shown(found.grpo.advantages[i]),
            f"{group.lengths[i]}{' (cut)' if group.truncated[i] else ''}",
            *([] if parts is None else [Text("\n".join(f"{one_line(name)} {_shown(part)}" for name, part in (parts[i] or {}).items()))]),
            Text(visible(said or "")),
        )  # fmt: skip
    return table


def _pieces(found: Explanation, estimator: str) -> Table:
    assert found.recorded is not None and found.grpo is not None and found.past is not None
    past = found.past
    table = Table(title="A = (reward - baseline) / scale", title_style="bold", title_justify="left")
    for name in ("", "baseline", "scale", "trust in history"):
        table.add_column(name, justify="right" if name else "left")

    def add(name: str, numbers: Numbers) -> None:
        table.add_row(name, _shown(numbers.baseline), _shown(numbers.scale), _shown(numbers.weight))

    add(estimator, found.recorded)
    add("GRPO", found.grpo)
    remembered = (
        f"cluster {found.cluster} before this step: mean {past.mean:.6g}, variance {past.variance:.6g}, mass {past.mass:.6g}"
        if past.seen
        else f"cluster {found.cluster} was never seen before this step"
    )
    table.caption, table.caption_justify = remembered, "left"
    return table


def replay_file(path: Path, estimators: Sequence[str], overrides: Sequence[str], seed: int, console: Console) -> Table:
    """Print one JSON line a group and estimator on stdout; return the summary. Raises ConfigError for a bad log or name.

    console: where the progress is shown.
    """
    base = load_moments_config(overrides)
    try:
        configs = [configured(base, spec) for spec in estimators]
        with path.open() as file, progress(console, EMBEDDING) as advance:
            groups = read_log(file, base, seed, advance)
    except FileNotFoundError:
        raise ConfigError(f"no log at {path}") from None
    except (ReplayError, ValueError) as error:
        raise ConfigError(f"{path}: {error}" if isinstance(error, ReplayError) else str(error)) from None
    table = Table(title=f"{path.name}: {len(groups)} groups", title_style="bold")
    table.add_column("estimator")
    for name in ("signal ratio", "groups rescued", "mean |A|"):
        table.add_column(name, justify="right")
    for config in configs:
        summary = ReplaySummary()
        what = f"groups under {estimator_label(config)}"
        # Rows that run over the screen say by themselves how far it is.
        with nullcontext(silent) if sys.stdout.isatty() else progress(console, what) as advance:
            for done, row in enumerate(replay(groups, config, summary), 1):
                sys.stdout.write(strict_json(row) + "\n")
                if done % 100 == 0:
                    advance(done, len(groups))
        table.add_row(
            estimator_label(config),
            f"{summary.signal_ratio:.3f}",
            str(summary.rescued),
            f"{summary.mean_magnitude:.3f}",
        )
    sys.stdout.flush()
    return table
