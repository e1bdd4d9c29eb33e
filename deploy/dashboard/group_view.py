"""What the page shows of groups: rows of a search, and one group in full with its advantages computed again."""

import threading
from collections import defaultdict
from typing import Any

from deploy.config.recipe import ConfigError, load_recipe
from deploy.dashboard.shown_text import MORE_CHARS, excerpt
from deploy.rundir.groups_index import Found, Place, Wanted
from deploy.rundir.ledger_rows import Incarnation
from deploy.rundir.open_run import OpenRun
from deploy.rundir.outcomes import Outcome
from moments_service.ledger import FoldedGroup
from moments_service.messages.groups import FULL_REWARD, GroupStatus
from moments_service.offline.explain import explain

PAGE = 50
"""Groups a page."""
RECOMPUTED_UNASKED = 2000
"""Commits that are folded again without being asked for; more take a while, and the page asks first."""

_one_at_a_time = threading.Lock()


class GroupUnknownError(LookupError):
    """The run's ledger holds no such group."""


def outcome_names() -> list[str]:
    """What a search by outcome can ask for."""
    return [outcome.name.lower() for outcome in Outcome] + ["rescued"]


def search(run: OpenRun, wanted: Wanted, before: str | None) -> dict[str, Any]:
    """One page of groups, newest first: {groups, next, total, read}. before: `next` of the page before.

    Raises ValueError where `before` is nothing that a page said.
    """
    index = run.groups()
    place = None if before is None else Place.parse(before)
    hits: list[Found] = []
    rows: list[dict[str, Any]] = []
    while True:
        hits = index.search(wanted, place, PAGE)
        found = listed(run, hits)
        rows += [row for row in found if row["id"].startswith(wanted.id_prefix)]
        more = len(hits) == PAGE
        if more:
            place = hits[-1].place
        if not more or len(rows) >= PAGE:
            break
    exact = len(wanted.id_prefix) <= 8
    return {
        "groups": rows,
        "next": str(place) if more else None,
        "total": index.count(wanted) if exact else None,
        "read": index.share_read,
    }


def listed(run: OpenRun, hits: list[Found]) -> list[dict[str, Any]]:
    """Rows of a list of groups, in the order of the hits."""
    by_step: dict[tuple[int, int], list[Found]] = defaultdict(list)
    for hit in hits:
        by_step[hit.place.incarnation, hit.place.step].append(hit)
    rows: dict[str, dict[str, Any]] = {}
    with run.ledger.reading():
        for (incarnation, step), some in by_step.items():
            twins: dict[int, list[FoldedGroup]] = defaultdict(list)
            for row in run.ledger.folded(incarnation, step, [hit.sequence for hit in some]):
                twins[row.group.sequence].append(row)
            for hit in some:
                rows[str(hit.place)] = _listed(twins[hit.sequence][hit.twin])
    return [rows[str(hit.place)] for hit in hits]


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
    known = [reward for reward in row.group.rewards if reward is not None]
    if not known:
        return "error"
    if row.step >= 0 and (row.group.status == GroupStatus.LOST or row.advantages is None):
        return "lost"
    if max(known) > min(known):
        return "mixed"
    return "solved" if min(known) >= FULL_REWARD else "unsolved"


def detail(run: OpenRun, group_id: str, incarnation: int | None) -> dict[str, Any]:
    """One group in full, texts cut to their beginnings. incarnation: None for the newest. Raises GroupUnknownError."""
    row = find(run, group_id, incarnation)
    texts = run.ledger.texts(row.incarnation, row.group.sequence, row.group.group_id)
    completions = texts.completions if texts is not None else ()
    parts = texts.reward_parts if texts is not None else None
    dropped = texts is None and run.ledger.texts_were_dropped(row.incarnation, row.group.sequence, row.group.group_id)
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
    texts = run.ledger.texts(row.incarnation, row.group.sequence, row.group.group_id)
    if texts is None or not -1 <= completion < len(texts.completions) or offset < 0:
        raise GroupUnknownError(f"group {group_id} has no text {completion} there")
    return excerpt(texts.prompt if completion < 0 else texts.completions[completion], offset, MORE_CHARS)


def recomputed(run: OpenRun, group_id: str, incarnation: int | None, patient: bool) -> dict[str, Any]:
    """The group's advantages computed again from the rewards in the ledger alone, and what GRPO would have made of it.

    patient: also where many commits have to be folded for it. Raises GroupUnknownError, and ConfigError for a run that
    this version cannot compute again.
    """
    row = find(run, group_id, incarnation)
    if row.advantages is None:
        return {"state": "untrained"}
    if row.step > RECOMPUTED_UNASKED and not patient:
        return {"state": "ask", "commits": row.step}
    config = load_recipe(run.directory.config)
    try:
        # Each one folds the history of a whole run: side by side they would only take each other's memory and time.
        with _one_at_a_time:
            found = explain(config.moments, run.directory.moments, row.group.group_id)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    one = next(entry for entry in found if entry.incarnation == row.incarnation)
    assert one.recomputed is not None and one.grpo is not None and one.past is not None
    return {
        "state": "done",
        "same": one.recorded == one.recomputed,
        "recomputed": _numbers(one.recomputed),
        "grpo": _numbers(one.grpo),
        "past": {name: getattr(one.past, name) for name in ("mean", "variance", "mass", "seen")},
    }


def _numbers(numbers: Any) -> dict[str, Any]:
    return {name: getattr(numbers, name) for name in ("advantages", "baseline", "scale", "weight")}


def find(run: OpenRun, group_id: str, incarnation: int | None) -> FoldedGroup:
    """The newest row of a group. Raises GroupUnknownError."""
    candidates: dict[int, list[Found]] = defaultdict(list)
    for hit in run.groups().search(Wanted(id_prefix=group_id), None, 2**31):
        if incarnation in (None, hit.place.incarnation):
            candidates[hit.place.incarnation].append(hit)
    with run.ledger.reading():
        for number, hits in candidates.items():
            sequence = run.ledger.place(number, group_id, [hit.sequence for hit in hits])
            for hit in hits:
                rows = run.ledger.folded(number, hit.place.step, [hit.sequence]) if hit.sequence == sequence else []
                for row in rows:
                    if row.group.group_id == group_id:
                        return row
    if group_id.count(":") == 3:
        for row in run.ledger.waiting(group_id):
            if incarnation in (None, row.incarnation):
                return row
    raise GroupUnknownError(f"no group {group_id[:80]} in the ledger of {run.name}")


def superseded(incarnations: list[Incarnation], number: int, step: int) -> bool:
    """Whether a later start of the run went on from before this step, so that it is no part of the state."""
    return any(one.number > number and one.after_step < step for one in incarnations)
