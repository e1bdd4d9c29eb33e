"""What the page shows of groups: rows of a search, and one group in full with its advantages computed again."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from deploy.config.recipe import ConfigError
from deploy.dashboard.shown_text import MORE_CHARS, excerpt
from deploy.rundir.find import load_run_config
from deploy.rundir.groups import Incarnation, Place, RunGroups, Wanted
from deploy.rundir.open_run import OpenRun
from moments_service.ledger import FoldedGroup
from moments_service.ledger.outcomes import Outcome, outcomes
from moments_service.offline.explain import explain

PAGE = 50
"""Groups a page."""
RECOMPUTED_UNASKED = 2000
"""Commits that are folded again without being asked for; more take a while, and the page asks first."""


class GroupUnknownError(LookupError):
    """The run's ledger holds no such group."""


def outcome_names() -> list[str]:
    """What a search by outcome can ask for."""
    return [*Outcome, "rescued"]


def search(run: OpenRun, wanted: Wanted, before: str | None) -> dict[str, Any]:
    """One page of groups, newest first: {groups, next, total, sources, outcomes}. before: `next` of the page before.

    Raises ValueError where `before` is nothing that a page said.
    """
    groups = run.groups()
    hits = groups.search(wanted, None if before is None else Place.parse(before), PAGE)
    return {
        "groups": listed(groups, hits),
        "next": str(hits[-1]) if len(hits) == PAGE else None,
        "total": groups.count(wanted),
        "sources": groups.sources(),
        "outcomes": outcome_names(),
    }


def listed(groups: RunGroups, places: Sequence[Place]) -> list[dict[str, Any]]:
    """Rows of a list of groups, in their order."""
    return [_listed(row) for row in groups.folded(places)]


def _listed(row: FoldedGroup) -> dict[str, Any]:
    return {
        "id": row.group.group_id,
        "incarnation": row.incarnation,
        "step": row.step,
        "cluster": row.cluster,
        "source": row.group.source,
        "outcome": outcome_of(row),
        "rewards": row.group.rewards,
        "advantages": row.advantages,
        "weight": row.weight,
        "tokens": sum(row.group.lengths),
    }


def outcome_of(row: FoldedGroup) -> str:
    """Name of the group's outcome."""
    rewards = np.array([row.group.rewards], dtype=np.float64)
    return outcomes(rewards, closed=row.step >= 0 and row.advantages is None)[0]


def detail(run: OpenRun, group_id: str, incarnation: int | None) -> dict[str, Any]:
    """One group in full, texts cut to their beginnings. incarnation: None for the newest. Raises GroupUnknownError."""
    row = find(run, group_id, incarnation)
    texts, dropped = run.groups().texts(row)
    completions = texts.completions if texts is not None else ()
    parts = run.groups().parts(row)
    return _listed(row) | {
        "sequence": row.group.sequence,
        "waiting": row.step < 0,
        "superseded": superseded(run.groups().incarnations(), row.incarnation, row.step),
        "versions": row.group.policy_versions,
        "baseline": row.baseline,
        "scale": row.scale,
        "texts_dropped": dropped,
        "prompt": excerpt(texts.prompt) if texts is not None else None,
        "completions": [
            {
                "reward": reward,
                "parts": parts[i] if parts is not None else None,
                "error": None if row.group.errors[i] is None else excerpt(str(row.group.errors[i])),
                "advantage": row.advantages[i] if row.advantages is not None else None,
                "tokens": row.group.lengths[i],
                "truncated": row.group.truncated[i],
                "text": excerpt(completions[i]) if i < len(completions) else None,
            }
            for i, reward in enumerate(row.group.rewards)
        ],
    }


def more_text(run: OpenRun, group_id: str, incarnation: int | None, completion: int, offset: int) -> dict[str, Any]:
    """The next part of a completion, or of the prompt for -1. Raises GroupUnknownError."""
    row = find(run, group_id, incarnation)
    texts, _ = run.groups().texts(row)
    if texts is None or not -1 <= completion < len(texts.completions) or offset < 0:
        raise GroupUnknownError(f"group {group_id} has no text {completion} there")
    return excerpt(texts.prompt if completion < 0 else texts.completions[completion], offset, MORE_CHARS)


def recomputed(run: OpenRun, row: FoldedGroup, patient: bool) -> dict[str, Any]:
    """The group's advantages computed again from the rewards in the ledger alone, and what GRPO would have made of it.

    patient: also where many commits have to be folded for it. Raises ConfigError for a run that this version cannot compute
    again.
    """
    if row.advantages is None:
        return {"state": "untrained"}
    if row.step > RECOMPUTED_UNASKED and not patient:
        return {"state": "ask", "commits": row.step}
    config = load_run_config(run.directory)
    try:
        found = explain(config.moments, run.directory.moments, row.group.group_id)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    one = next(entry for entry in found if entry.incarnation == row.incarnation)
    assert one.recomputed is not None and one.grpo is not None and one.past is not None
    return {
        "state": "done",
        "same": one.recorded == one.recomputed,
        "recomputed": asdict(one.recomputed),
        "grpo": asdict(one.grpo),
        "past": asdict(one.past),
    }


def find(run: OpenRun, group_id: str, incarnation: int | None) -> FoldedGroup:
    """The newest row of a group. Raises GroupUnknownError."""
    row = run.groups().find(group_id, incarnation)
    if row is None:
        raise GroupUnknownError(f"no group {group_id[:80]} in the ledger of {run.name}")
    return row


def superseded(incarnations: list[Incarnation], number: int, step: int) -> bool:
    """Whether a later start of the run went on from before this step, so that it is no part of the state."""
    return any(one.number > number and one.after_step < step for one in incarnations)
