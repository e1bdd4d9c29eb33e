"""What the nodes of a Ray cluster have, and places on them that are reserved for actors of one kind."""

import asyncio
import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import RayError, RpcError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.config import Placement

GIVE_BACK_S = 5.0


class NoRoomError(RuntimeError):
    """No node has room for what was asked for; the message says what that is and what the nodes have."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive, with its Ray resources by name."""

    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]

    def describe(self, resources: Sequence[str]) -> str:
        """`10.0.0.2: 1 of 4 CPU, 0 of 1 GPU free`"""
        amounts = (f"{self.free.get(name, 0.0):g} of {self.total.get(name, 0.0):g} {name}" for name in resources)
        return f"{self.address}: {', '.join(amounts)} free"


@dataclass(frozen=True, slots=True)
class Part:
    """Actors of one kind, all alike, that are placed together."""

    what: str
    """One of them, for people: `learner rank`."""
    section: str
    """Where the recipe sets them: `learner`."""
    count: int
    bundle: Mapping[str, float]
    """Ray resources that each takes."""
    placement: Placement

    def __str__(self) -> str:
        each = ", ".join(f"{amount:g} {name}" for name, amount in self.bundle.items())
        return f"{self.count} x {self.what} with {each} each ({self.section}.placement: {self.placement})"


def bundle(cpus: float, gpus: float) -> dict[str, float]:
    """Ray resources of one actor."""
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}


def alive_nodes() -> list[Node]:
    """The nodes of the cluster that this process is connected to: its own, then the others by address."""
    # The one way to the free resources of each node; developer API in Ray 2.60, whose version is pinned.
    free = ray._private.state.available_resources_per_node()
    here = ray.get_runtime_context().get_node_id()
    alive = [node for node in ray.nodes() if node["Alive"]]
    alive.sort(key=lambda node: (node["NodeID"] != here, node["NodeManagerAddress"]))
    return [Node(node["NodeManagerAddress"], node["Resources"], free.get(node["NodeID"], {})) for node in alive]


def no_room(part: Part, nodes: Sequence[Node], why: str = "") -> NoRoomError:
    """The error for a part that does not fit."""
    has = "\n".join(f"  {node.describe(list(part.bundle))}" for node in nodes)
    return NoRoomError(
        f"no room for {part}{why}. The nodes:\n{has}\n"
        f"Lower the number or the resources in `{part.section}`, choose another {part.section}.placement, or add nodes"
    )


async def reserve(part: Part, timeout_s: float) -> PlacementGroup:
    """A bundle for each actor of `part`, in a placement group that whoever asked for it removes.

    It ends with the driver at the latest. Bundles on a node that dies are placed again by Ray when another node has
    room. Raises NoRoomError past `timeout_s`.
    """
    places = placement_group([dict(part.bundle)] * part.count, strategy=part.placement.upper())
    try:
        if not await asyncio.to_thread(places.wait, timeout_s):
            raise no_room(part, alive_nodes(), f" in {timeout_s:g} s")
    except BaseException:
        remove_placement_group(places)
        raise
    return places


async def give_back(places: PlacementGroup) -> None:
    """Remove a placement group. A Ray that does not answer in `GIVE_BACK_S`, because it is ending itself, gives the places back anyway."""
    loop, removed = asyncio.get_running_loop(), asyncio.Event()

    def remove() -> None:
        # In a thread that nobody waits for when the process ends.
        with contextlib.suppress(RayError, RpcError):
            remove_placement_group(places)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(removed.set)

    threading.Thread(target=remove, name="give-back", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(removed.wait(), GIVE_BACK_S)


def place_in(places: PlacementGroup, index: int) -> PlacementGroupSchedulingStrategy:
    """Scheduling strategy of the actor that bundle number `index` is reserved for."""
    return PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=index)


def addresses(places: PlacementGroup) -> list[str | None]:
    """Address of the node that holds each bundle; None for one that lost its node and found no other."""
    by_id = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    holders = placement_group_table(places)["bundles_to_node_id"]
    return [by_id.get(holders[index]) for index in sorted(holders)]
