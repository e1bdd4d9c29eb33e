"""Parts of rewards as metrics of a batch: means over what has both, under names that are text."""

from dataclasses import replace

import pytest

from moments_service.messages.groups import ScoredGroup
from moments_service.messages.table import GroupTable, join_tables
from moments_service.signal import MOST_PARTS, part_metrics
from tests.unit.test_ledger import header

pytestmark = pytest.mark.unit


def test_a_part_is_averaged_over_the_completions_that_have_it_and_a_reward() -> None:
    groups = [
        replace(header(0, (1.25, None, 0.0)), parts=({"right": 1.0, "form": 0.25}, {"right": 1.0}, {"right": 0.0})),
        header(1),
        replace(header(2, (0.5,)), parts=({"right": 0.5},)),
    ]
    expected = {"reward_part/form": 0.25, "reward_part/right": 0.5}
    table = GroupTable.of(groups)
    assert part_metrics(table) == expected
    assert part_metrics(join_tables([table.take([2]), table.take([1, 0])])) == expected
    assert part_metrics(table.take([1])) == {}


def test_names_that_are_no_names_of_metrics_and_numbers_that_are_none_are_left_out() -> None:
    parts = {
        "../x": 1.0,
        "<b>": 1.0,
        "a/b": 1.0,
        "": 1.0,
        "x" * 41: 1.0,
        "\n": 1.0,
        "é": 1.0,
        "good one": 2.0,
        "inf": float("inf"),
    }
    assert part_metrics(GroupTable.of([replace(header(0, (1.0,)), parts=(parts,))])) == {"reward_part/good one": 2.0}


def test_there_are_metrics_of_a_bounded_number_of_parts_the_most_frequent() -> None:
    """A verifier may name them differently each time."""
    groups: list[ScoredGroup] = [
        replace(header(i, (1.0,)), parts=({"right": 1.0, f"other {i}": 0.0},)) for i in range(3 * MOST_PARTS)
    ]
    found = part_metrics(GroupTable.of(groups))
    assert len(found) == MOST_PARTS and found["reward_part/right"] == 1.0


def test_a_group_has_parts_for_each_completion_or_none() -> None:
    with pytest.raises(ValueError, match="read and parts differ in length"):
        replace(header(0), parts=({"right": 1.0},))
