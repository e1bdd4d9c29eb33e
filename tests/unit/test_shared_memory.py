"""Weights in memory that processes share: written in place, kept for slow readers, copied for other machines alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actors.weights import shared_memory
from actors.weights.offer import Blob, WeightsReleasedError
from actors.weights.shared_memory import PlacedBuffer, SharedMemory

pytestmark = pytest.mark.unit

SIZE = 4096


def place(learner: SharedMemory, version: int, elsewhere: bool = False) -> PlacedBuffer:
    """A version whose bytes are all its number."""
    room = learner.room(SIZE)
    room[:] = version
    return learner.place(room, version, elsewhere)


def values(found: tuple[Blob, str | None]) -> set[int]:
    return set(found[0].tolist())


def test_two_buffers_take_turns() -> None:
    learner = SharedMemory()
    placed = [place(learner, version) for version in range(1, 7)]
    assert len({each.path for each in placed}) == 2
    assert [each.path for each in placed[2:]] == [each.path for each in placed[:-2]]


def test_a_slow_reader_keeps_its_version_and_nobody_waits_for_it() -> None:
    learner, engine = SharedMemory(), SharedMemory()
    first = place(learner, 1)
    slow = engine.open(first)
    others = [place(learner, version) for version in (2, 3, 4, 5)]
    assert values(slow) == {1}
    assert slow[1] is not None and set(np.fromfile(slow[1], np.uint8)[:SIZE].tolist()) == {1}
    assert others[1].token != first.token and others[3].token == others[1].token
    with pytest.raises(WeightsReleasedError, match="newer weights have settled"):
        engine.open(first)


def test_two_engines_read_one_version_at_once() -> None:
    learner = SharedMemory()
    placed = place(learner, 7)
    found = [SharedMemory().open(placed) for _ in range(2)]
    assert [values(each) for each in found] == [{7}, {7}]
    assert found[0][1] != found[1][1]


def test_who_comes_while_the_next_version_is_written_over_his_is_told() -> None:
    learner, engine = SharedMemory(), SharedMemory()
    first, second = place(learner, 1), place(learner, 2)
    learner.room(SIZE)[:] = 3
    with pytest.raises(WeightsReleasedError, match="policy version 1 was released"):
        engine.open(first)
    assert values(engine.open(second)) == {2}


def test_a_version_that_could_not_be_written_whole_is_no_version() -> None:
    learner, engine = SharedMemory(), SharedMemory()
    first, second = place(learner, 1), place(learner, 2)
    learner.room(SIZE)[:10] = 3  # and then the rank raised
    again = place(learner, 3)
    assert values(engine.open(again)) == {3} and values(engine.open(second)) == {2}
    with pytest.raises(WeightsReleasedError):
        engine.open(first)
    with pytest.raises(ValueError, match="not written where there was room"):
        learner.place(np.zeros(SIZE, np.uint8), 4, elsewhere=False)


def test_a_policy_of_another_size_gets_other_memory() -> None:
    learner = SharedMemory()
    for version in (1, 2):
        place(learner, version)
    assert len(learner.room(2 * SIZE)) == 2 * SIZE


def test_the_path_of_a_learner_that_is_gone_leads_to_nothing_that_is_taken_for_weights() -> None:
    learner, successor, engine = SharedMemory(), SharedMemory(), SharedMemory()
    before, now = place(learner, 1), place(successor, 1)
    with pytest.raises(WeightsReleasedError, match="the learner that had them is gone"):
        engine.open(replace(before, path=now.path))


def test_other_machines_read_a_copy_and_containers_are_told_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    store: list[Blob] = []
    monkeypatch.setattr(shared_memory, "_copied", lambda blob: store.append(blob.copy()) or len(store) - 1)
    monkeypatch.setattr(shared_memory, "_fetched", lambda place: store[place])
    learner, engine = SharedMemory(), SharedMemory()
    placed = place(learner, 1, elsewhere=True)
    assert values(engine.open(placed)) == {1} and engine.open(placed)[1] is not None, (
        "the copy was read on the same machine"
    )
    away = replace(placed, seen_by="another machine")
    place(learner, 2)
    place(learner, 3)
    assert values(engine.open(away)) == {1} and engine.open(away)[1] is None
    alone: Any = replace(place(learner, 4), seen_by="a container")
    with pytest.raises(WeightsReleasedError, match="weights: object_store"):
        engine.open(alone)
