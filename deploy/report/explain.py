"""What `bvblend explain` prints."""

from collections.abc import Sequence
from functools import partial

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.report.numbers import shown
from deploy.report.visible import one_line, visible
from moments_service.offline.explain import Explanation, Numbers

_shown = partial(shown, form=".6g")


def explanation(found: Explanation, estimator: str, shaped_by: Sequence[str] = ()) -> RenderableType:
    """One group for a person to read. shaped_by: what changed the advantages on their way to the learner."""
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
    if shaped_by:
        later = f"config.yaml has shaping by {' and '.join(shaped_by)}, which comes after this and before the learner"
        parts.append(Text(later, style="yellow"))
    return Group(*parts)


def _completions(found: Explanation, estimator: str) -> Table:
    assert found.recorded is not None and found.grpo is not None
    group, texts = found.group, found.texts.completions if found.texts is not None else None
    parts = found.parts
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
