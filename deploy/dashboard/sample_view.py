"""What the page shows of samples: prompts and completions that were searched for, and those of the same prompt elsewhere."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from math import isfinite
from typing import Any

from deploy.dashboard.shown_text import excerpt
from deploy.report.visible import visible
from deploy.rundir.groups import Place, Wanted
from deploy.rundir.open_run import OpenRun
from deploy.rundir.samples import FoundSample, SampleFilter, find_samples, samples_of_prompt
from deploy.rundir.token_file import keeps_tokens, newest_step, tokens_of

PAGE = 40
"""Samples a page, to whole groups."""
PROMPT_CHARS = 600
COMPLETION_CHARS = 1200
MOST_TOKENS = 1000
"""Tokens of a completion whose values are sent."""


def search(run: OpenRun, wanted: SampleFilter, before: str | None, valued: bool = False) -> dict[str, Any]:
    """One page of samples by group, newest first: {groups, next, looked_at, step, sources, newest_tokens}. before: `next` of the page before.

    step: how far back was looked.    newest_tokens: the last step that kept values of tokens.    valued: only groups
    whose tokens have some. Raises ValueError where `before` is nothing that a page said.
    """
    groups = run.groups()
    if valued:
        wanted = replace(wanted, place=partial(keeps_tokens, run.directory.tokens))
    page = find_samples(groups, wanted, None if before is None else Place.parse(before), PAGE)
    return {
        "groups": [
            _group(run, list(samples)) for _, samples in groupby(page.samples, key=lambda sample: id(sample.group))
        ],
        "next": None if page.next is None else str(page.next),
        "looked_at": page.looked_at,
        "step": None if page.next is None else page.next.step,
        "sources": groups.sources(),
        "newest_tokens": newest_step(run.directory.tokens),
    }


def token_values(run: OpenRun, group_id: str, step: int, incarnation: int) -> dict[str, Any]:
    """{samples}: of each sample of a group whose token values were kept, {index, tokens, more}; none where they were not.

    tokens: [text, learner's log-prob, sampler's, advantage] each, numbers null where the policy did not sample it.    more: how
    many follow those. Raises DamagedFileError.
    """
    kept = tokens_of(run.directory.tokens, step, incarnation, group_id)
    return {
        "samples": [
            {
                "index": index,
                "tokens": [
                    (visible(text), *map(_finite, numbers))
                    for text, *numbers in zip(
                        tokens.texts[:MOST_TOKENS],
                        *(
                            values[:MOST_TOKENS].tolist()
                            for values in (tokens.learner, tokens.sampler, tokens.advantage)
                        ),
                        strict=True,
                    )
                ],
                "more": max(0, len(tokens.texts) - MOST_TOKENS),
            }
            for index, tokens in kept.items()
        ]
    }


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def of_prompt(run: OpenRun, prompt_id: str, step: int | None) -> dict[str, Any]:
    """{group}: the newest group of a prompt, at a step if one is named; null where there is none."""
    samples = samples_of_prompt(run.groups(), prompt_id, step)
    return {"group": _group(run, samples) if samples else None}


def wanted_samples(
    groups: Wanted,
    text: str,
    reward: Sequence[float | None],
    tokens: Sequence[int | None],
    state: str,
) -> SampleFilter:
    """What the page's form asks for. reward, tokens: least and most.    state: `failed`, `judged`, `cut` or "" for any."""
    return SampleFilter(
        groups=groups,
        lowest=reward[0],
        highest=reward[1],
        shortest=tokens[0],
        longest=tokens[1],
        failed={"failed": True, "judged": False}.get(state),
        truncated=True if state == "cut" else None,
        text=text,
    )


def _group(run: OpenRun, samples: Sequence[FoundSample]) -> dict[str, Any]:
    first = samples[0]
    group = first.group
    return {
        "id": group.group.group_id,
        "prompt_id": group.group.prompt_id,
        "incarnation": group.incarnation,
        "step": group.step,
        "source": group.group.source,
        "cluster": group.cluster,
        "has_tokens": keeps_tokens(run.directory.tokens, Place.of(group)),
        "prompt": None if first.texts is None else excerpt(first.texts.prompt, limit=PROMPT_CHARS),
        "samples": [
            {
                "index": sample.index,
                "reward": sample.reward,
                "parts": sample.parts,
                "error": None if sample.error is None else excerpt(sample.error, limit=PROMPT_CHARS),
                "advantage": sample.advantage,
                "tokens": sample.tokens,
                "truncated": sample.truncated,
                "text": None if sample.completion is None else excerpt(sample.completion, limit=COMPLETION_CHARS),
            }
            for sample in samples
        ],
    }
