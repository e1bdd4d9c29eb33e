"""What readers expect in the JSON of a run directory: an object is of the kind that a run writes, or it says nothing."""

from typing import Any, TypedDict

import msgspec

_Number = float | None


class _Actor(TypedDict, total=False):
    serving: bool


class _Process(TypedDict):
    role: str
    pid: int
    node: str


class _Moments(TypedDict, total=False):
    clusters: dict[str, list[_Number | bool]]
    counts: dict[str, _Number]
    ready: int


class Live(TypedDict, total=False):
    """live.json."""

    written_at: float
    step: int
    policy_version: int
    slots: int
    in_flight: int
    scored: int
    restarts: int
    actors: list[_Actor]
    moments: _Moments
    processes: list[_Process]
    cluster_names: list[str]


class AlarmRow(TypedDict):
    """A line of alarms.jsonl."""

    step: int
    kind: str
    cluster: int | None
    expected: _Number
    found: _Number


class EvaluationRow(TypedDict):
    """A line of evaluations.jsonl."""

    step: int
    split: str
    pass_at_1: _Number
    prompts: int
    errors: int


class _Advice(TypedDict):
    reasons: list[str]


class Advised(TypedDict):
    """summary.json of a run whose rewards advise something."""

    advice: _Advice


def fits(found: dict[str, Any], kind: type) -> bool:
    """Whether an object is of a kind above; keys that it does not name may be there too."""
    try:
        msgspec.convert(found, kind)
    except (msgspec.ValidationError, OverflowError):
        return False
    return True
