"""What the hot path does to whole columns, against the same done row by row."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moments_service.held import Groups, HeldGroups
from moments_service.ledger.schema import RepeatedRows, TransactionHash, json_rows
from moments_service.ledger.seen import SeenPlaces
from moments_service.messages.groups import ScoredGroup
from moments_service.messages.table import GroupTable

pytestmark = pytest.mark.unit


def groups(places: list[tuple[int, int]]) -> Groups:
    """A group for each (sequence, attempt), as wide as its attempt says."""
    headers = [
        ScoredGroup(
            group_id=f"prompt{sequence}:0:0:{attempt}",
            prompt_id=f"prompt{sequence}",
            source="sums",
            sequence=sequence,
            rewards=(1.0,) * (attempt + 1),
            errors=(None,) * (attempt + 1),
            lengths=(3,) * (attempt + 1),
            truncated=(False,) * (attempt + 1),
            policy_versions=(0, 0),
        )
        for sequence, attempt in places
    ]
    clusters = np.array([sequence % 5 for sequence, _ in places], dtype=np.int64)
    return Groups(GroupTable.of(headers), clusters, [f"tokens {place}" for place in places])


PLACES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=1, max_size=20, unique=True)


@settings(max_examples=60, deadline=None)
@given(places=PLACES, cuts=st.lists(st.integers(1, 7), min_size=1), data=st.data())
def test_groups_leave_by_their_ids_in_feed_order_with_what_is_theirs(
    places: list[tuple[int, int]], cuts: list[int], data: Any
) -> None:
    held, waiting = HeldGroups(), list(places)
    for cut in cuts:
        part, waiting = waiting[:cut], waiting[cut:]
        if part:
            held.put(groups(part))
    held.put(groups(waiting) if waiting else groups(places[:1]).take([]))
    left = list(places)
    while left:
        taken = data.draw(st.lists(st.sampled_from(left), min_size=1, unique=True))
        left = [place for place in left if place not in taken]
        found = held.take(f"prompt{sequence}:0:0:{attempt}" for sequence, attempt in taken)
        taken.sort()
        assert [(int(s), int(n) - 1) for s, n in zip(found.table.sequence, found.table.sizes, strict=True)] == taken
        assert list(found.payloads) == [f"tokens {place}" for place in taken]
        assert found.clusters.tolist() == [sequence % 5 for sequence, _ in taken]
        assert found.table.rewards.shape[1] == max(attempt + 1 for _, attempt in taken)
        assert found.table.rewards.flags.c_contiguous
        assert len(held) == len(held.all()) == len(left)
        with pytest.raises(KeyError):
            held.take([f"prompt{taken[0][0]}:0:0:{taken[0][1]}"])
        assert len(held) == len(left)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-5, 1 << 40), max_size=8), max_size=5), st.lists(st.integers(-5, 1 << 40)))
def test_seen_places_are_a_set(added: list[list[int]], asked: list[int]) -> None:
    seen = SeenPlaces()
    for places in added:
        seen.add(np.array(places, dtype=np.int64))
    known = {place for places in added for place in places}
    asked = [*asked, *known, *(place + 8 for place in known)]
    found = seen.contains(np.array(asked, dtype=np.int64))
    assert found.tolist() == [place in known for place in asked]


@settings(deadline=None)
@given(st.lists(st.lists(st.lists(st.sampled_from([0.0, 1.0, 0.5, np.nan]), min_size=3, max_size=3)), max_size=6))
def test_repeated_rows_are_written_like_any_others(batches: list[list[list[float]]]) -> None:
    texts = RepeatedRows(most=4)
    for batch in batches:
        values = np.array(batch, dtype=np.float64).reshape(-1, 3)
        sizes = np.full(len(values), 3)
        assert texts.json(values, sizes) == json_rows(values, sizes)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(), st.text(), st.none() | st.floats(allow_nan=False))))
def test_many_rows_have_the_checksum_of_each_in_turn(rows: list[tuple[Any, ...]]) -> None:
    one, many = TransactionHash(), TransactionHash()
    one.add("groups", rows)
    many.add_all("groups", rows)
    assert one.seal() == many.seal()
