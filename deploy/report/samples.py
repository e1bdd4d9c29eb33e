"""What `bvblend samples` prints: prompts and completions for a person to read, alone or beside those of another time or run."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from deploy.report.numbers import shown
from deploy.report.token_colours import Coloured
from deploy.report.visible import one_line, visible
from deploy.rundir.samples import FoundSample, Page


def shown_samples(page: Page, chars: int, coloured: Coloured | None = None) -> Iterator[RenderableType]:
    """One block a sample; a prompt stands once above all of its group. chars: how much of each text.

    coloured: makes completions whose tokens are coloured.
    """
    above = None
    for sample in page.samples:
        if sample.group is not above:
            yield Rule(style="dim")
            yield _prompt(sample, chars)
            above = sample.group
        yield _block(sample, chars, coloured)
    yield Text(_found(page), style="dim")


def shown_beside(samples: Sequence[FoundSample], others: Sequence[Sequence[FoundSample]], chars: int) -> RenderableType:
    """Each prompt's completions on the left, those of the other time or run on the right; a prompt stands once above both."""
    table = Table(expand=True, show_lines=True, show_header=False)
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    by_prompt: dict[str, tuple[list[FoundSample], Sequence[FoundSample]]] = {}
    for sample, other in zip(samples, others, strict=True):
        by_prompt.setdefault(sample.group.group.group_id, ([], other))[0].append(sample)
    for left, right in by_prompt.values():
        table.add_row(_column(left, chars, prompt=True), _column(right, chars, prompt=False))
    return table


def as_json(sample: FoundSample) -> dict[str, Any]:
    """One sample for programs, its texts as they were kept."""
    return {
        "step": sample.group.step,
        "group": sample.group.group.group_id,
        "index": sample.index,
        "source": sample.group.group.source,
        "cluster": sample.group.cluster,
        "reward": sample.reward,
        "parts": sample.parts,
        "error": sample.error,
        "advantage": sample.advantage,
        "tokens": sample.tokens,
        "truncated": sample.truncated,
        "prompt": None if sample.texts is None else sample.texts.prompt,
        "completion": sample.completion,
    }


def _column(samples: Sequence[FoundSample], chars: int, prompt: bool) -> Text:
    if not samples:
        return Text("no group of this prompt", style="dim")
    blocks = [_prompt(samples[0], chars)] if prompt else [_place(samples[0])]
    return Text("\n").join([*blocks, *(_block(sample, chars) for sample in samples)])


def _place(sample: FoundSample) -> Text:
    group = sample.group
    return Text(f"step {group.step + 1} · {one_line(group.group.source)} · cluster {group.cluster}", style="bold")


def _prompt(sample: FoundSample, chars: int) -> Text:
    head = _place(sample)
    head.append(f"   {one_line(sample.group.group.group_id)}\n", style="not bold dim")
    if sample.texts is None:
        return head.append("its texts were not kept\n", style="not bold dim")
    return head.append(_cut(sample.texts.prompt, chars) + "\n", style="not bold italic")


def _block(sample: FoundSample, chars: int, coloured: Coloured | None = None) -> Text:
    reward = "no reward" if sample.reward is None else f"reward {shown(sample.reward, '.4g')}"
    style = "yellow" if sample.reward is None else "green" if sample.reward > 0 else "red"
    text = Text(f"#{sample.index} {reward}", style=style)
    details = [f"A {shown(sample.advantage, '+.3f')}", f"{sample.tokens} tokens{', cut' if sample.truncated else ''}"]
    details += [f"{one_line(name)} {shown(part, '.3g')}" for name, part in (sample.parts or {}).items()]
    text.append(f"  {' · '.join(details)}\n", style="dim")
    if sample.error is not None:
        text.append(_cut(sample.error, chars) + "\n", style="yellow")
    tokens = None if coloured is None else coloured(sample, chars)
    if tokens is not None:
        text.append_text(tokens).append("\n")
    elif sample.completion is not None:
        text.append(_cut(sample.completion, chars) + "\n", style="default")
    return text


def _cut(text: str, chars: int) -> str:
    text = text.strip()
    return visible(text if len(text) <= chars else f"{text[:chars]} … {len(text) - chars} more characters")


def _found(page: Page) -> str:
    count = f"{len(page.samples)} sample{'' if len(page.samples) == 1 else 's'} in {page.looked_at} groups"
    return count if page.next is None else f"{count}; older ones: --before {one_line(str(page.next))}"
