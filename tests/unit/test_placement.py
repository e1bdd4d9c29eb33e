"""What fits on which nodes, on paper: against every way to place it by hand, and in words."""

from io import StringIO
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from actors.config import Placement
from actors.placement import Node, Part
from deploy.cluster.environment import EnvironmentProblemError
from deploy.cluster.placement import arrange, busy, places_table, refuse_what_does_not_fit
from deploy.config.models import RunConfig
from deploy.config.recipe import load_recipe
from tests.conftest import ROOT, settings

pytestmark = pytest.mark.unit

PLACEMENTS: tuple[Placement, ...] = ("pack", "strict_pack", "spread", "strict_spread")


def part(count: int, cpus: float, placement: Placement, gpus: float = 0.0) -> Part:
    return Part("actor", "rollout", count, {"CPU": cpus} | ({"GPU": gpus} if gpus else {}), placement)


def node(name: str, cpus: float, gpus: float = 0.0, free: float | None = None) -> Node:
    return Node(name, {"CPU": cpus, "GPU": gpus}, {"CPU": cpus if free is None else free, "GPU": gpus})


def recipe(**values: object) -> RunConfig:
    overrides = settings(**values)[1::2]
    return load_recipe(ROOT / "deploy" / "recipes" / "cold_start.yaml", overrides)


def allowed(placement: Placement, nodes: tuple[int, ...]) -> bool:
    distinct = len(set(nodes))
    return {"strict_pack": distinct == 1, "strict_spread": distinct == len(nodes)}.get(placement, True)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=3),
    st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from([0.5, 1, 2]), st.integers(0, 1), st.sampled_from(PLACEMENTS)),
        min_size=1,
        max_size=2,
    ),
)
def test_what_is_arranged_fits_and_what_fits_in_any_way_by_itself_is_arranged(
    sizes: list[tuple[int, int]], asked: list[tuple[int, float, int, Placement]]
) -> None:
    free = [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in sizes]
    wanted = [part(count, cpus, placement, gpus) for count, cpus, gpus, placement in asked]

    def fits(chosen: list[tuple[int, ...]]) -> bool:
        for number, has in enumerate(free):
            for name, amount in has.items():
                takes = sum(
                    nodes.count(number) * one.bundle.get(name, 0.0) for one, nodes in zip(wanted, chosen, strict=False)
                )
                if takes > amount:
                    return False
        return all(allowed(one.placement, nodes) for one, nodes in zip(wanted, chosen, strict=False))

    found = arrange(wanted, free)
    if found is not None:
        assert [len(nodes) for nodes in found] == [one.count for one in wanted]
        assert fits([tuple(nodes) for nodes in found])
    for first in wanted[:1]:
        by_hand = any(fits([nodes]) for nodes in product(range(len(free)), repeat=first.count))
        assert (arrange([first], free) is not None) == by_hand


@pytest.mark.parametrize(
    ("placement", "expected"),
    [("pack", [1, 1]), ("strict_pack", [1, 1]), ("spread", [0, 1]), ("strict_spread", [0, 1])],
)
def test_packing_takes_the_node_that_just_holds_it_and_spreading_takes_turns(
    placement: Placement, expected: list[int]
) -> None:
    assert arrange([part(2, 1, placement)], [{"CPU": 4.0}, {"CPU": 2.0}]) == [expected]


def test_a_learner_leaves_the_only_node_that_the_others_can_use() -> None:
    learner, rollout = part(1, 2, "pack"), part(1, 1, "spread", gpus=1)
    assert arrange([learner, rollout], [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 8.0}]) == [[1], [0]]


def test_a_plan_names_every_node_and_what_it_would_hold() -> None:
    config = recipe(learner__cpus=2, rollout__actors=3)
    nodes = [node("10.0.0.1", 0), node("10.0.0.2", 2), node("10.0.0.3", 4)]
    refuse_what_does_not_fit(config, nodes)
    console = Console(width=120, record=True, file=StringIO())
    console.print(places_table(config, nodes))
    lines = {line.split()[1]: line for line in console.export_text().splitlines() if "10.0.0" in line}
    assert "driver, moments service" in lines["10.0.0.1"] and "learner" not in lines["10.0.0.1"]
    assert "1 x learner rank" in lines["10.0.0.2"] and "2 of 2" in lines["10.0.0.2"]
    assert "3 x rollout actor" in lines["10.0.0.3"]


def test_a_refusal_names_what_does_not_fit_and_what_the_nodes_have() -> None:
    config = recipe(learner__world_size=2, learner__placement="strict_pack")
    with pytest.raises(EnvironmentProblemError) as refused:
        refuse_what_does_not_fit(config, [node("10.0.0.1", 1), node("10.0.0.2", 1, gpus=4)])
    assert "no room for 2 x learner rank with 1 CPU each (learner.placement: strict_pack). The nodes" in str(
        refused.value
    )
    assert "10.0.0.2: 1 of 1 CPU free" in str(refused.value)
    with pytest.raises(EnvironmentProblemError, match=r"1 x rollout actor .* beside 2 x learner rank"):
        refuse_what_does_not_fit(config, [node("10.0.0.1", 2)])


def test_nodes_that_others_use_now_are_no_reason_to_refuse() -> None:
    nodes = [node("10.0.0.1", 4, free=1)]
    refuse_what_does_not_fit(recipe(), nodes)
    assert "1 of 4 CPU free" in (busy(recipe(), nodes) or "")
    assert busy(recipe(), [node("10.0.0.1", 4)]) is None
