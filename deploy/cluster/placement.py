"""Whether a cluster can hold a recipe, and what would go where: the same rules as Ray's placement groups, on paper."""

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from actors.placement import Node, NoRoomError, Part, no_room
from actors.rollout.spawn import rollout_part
from deploy.cluster.environment import EnvironmentProblemError
from deploy.config.models import RunConfig
from learner.group import learner_part

Free = Sequence[Mapping[str, float]]
"""What each node has left, by Ray resource."""


def parts(config: RunConfig) -> list[Part]:
    """What a run reserves, in the order in which it asks for it."""
    return [learner_part(config.learner), rollout_part(config.rollout)]


def arrange(wanted: Sequence[Part], free: Free) -> list[list[int]] | None:
    """The node of every actor, [len(wanted)][part.count] as indices into `free`; None where they do not all fit."""
    if not wanted:
        return []
    first, *others = wanted
    for nodes in _choices(first, free):
        left = [_without(has, first.bundle, nodes.count(node)) for node, has in enumerate(free)]
        rest = arrange(others, left)
        if rest is not None:
            return [nodes, *rest]
    return None


def refuse_what_does_not_fit(config: RunConfig, nodes: Sequence[Node]) -> None:
    """Raise EnvironmentProblemError, naming the part and the nodes, where the cluster could not hold the run even if empty."""
    try:
        _refuse(parts(config), nodes, [node.total for node in nodes])
    except NoRoomError as error:
        raise EnvironmentProblemError(f"the cluster cannot hold this recipe: {error}") from None


def busy(config: RunConfig, nodes: Sequence[Node]) -> str | None:
    """What does not fit as long as others use the cluster as they do now; None where everything fits."""
    try:
        _refuse(parts(config), nodes, [node.free for node in nodes])
    except NoRoomError as error:
        return str(error)
    return None


def places_table(config: RunConfig, nodes: Sequence[Node]) -> Table:
    """What would go where. The run must fit; where nodes are busy now, as if they were not."""
    wanted = parts(config)
    found = arrange(wanted, [node.free for node in nodes]) or arrange(wanted, [node.total for node in nodes])
    assert found is not None, "refuse_what_does_not_fit was not asked"
    names = list(dict.fromkeys(name for part in wanted for name in part.bundle))
    table = Table(title="where it would go", title_style="bold")
    table.add_column("node")
    for name in names:
        table.add_column(f"{name}, free of all", justify="right")
    table.add_column("would hold")
    for number, node in enumerate(nodes):
        amounts = (f"{node.free.get(name, 0.0):g} of {node.total.get(name, 0.0):g}" for name in names)
        holds = [
            f"{chosen.count(number)} x {part.what}"
            for part, chosen in zip(wanted, found, strict=True)
            if number in chosen
        ]
        table.add_row(
            node.address, *amounts, ", ".join([*holds, *(["driver, moments service"] if number == 0 else [])])
        )
    return table


def _refuse(wanted: Sequence[Part], nodes: Sequence[Node], free: Free) -> None:
    for number, part in enumerate(wanted):
        if arrange([part], free) is None:
            raise no_room(part, nodes)
        if arrange(wanted[: number + 1], free) is None:
            raise no_room(part, nodes, f" beside {wanted[number - 1]}")


def _choices(part: Part, free: Free) -> Iterator[list[int]]:
    """Ways to place a part by itself, the likeliest first."""
    room = [_room(has, part.bundle) for has in free]
    roomiest = sorted((node for node, space in enumerate(room) if space), key=lambda node: -room[node])
    if part.placement == "strict_spread":
        if len(roomiest) >= part.count:
            yield roomiest[: part.count]
    elif part.placement == "strict_pack":
        yield from ([node] * part.count for node in reversed(roomiest) if room[node] >= part.count)
    elif sum(room) >= part.count:
        if part.placement == "spread":
            turns = sorted((turn, place) for place, node in enumerate(roomiest) for turn in range(room[node]))
            yield [roomiest[place] for _, place in turns[: part.count]]
        else:
            # The node that just holds all of it comes first, then those that hold most.
            for start in sorted(roomiest, key=lambda node: (room[node] < part.count, abs(room[node] - part.count))):
                order = [start, *(node for node in roomiest if node != start)]
                yield [node for node in order for _ in range(room[node])][: part.count]


def _room(has: Mapping[str, float], bundle: Mapping[str, float]) -> int:
    """How many bundles fit; Ray counts resources in ten-thousandths."""
    return min((round(has.get(name, 0.0) * 1e4) // round(amount * 1e4) for name, amount in bundle.items()), default=0)


def _without(has: Mapping[str, float], bundle: Mapping[str, float], count: int) -> dict[str, float]:
    return {name: amount - count * bundle.get(name, 0.0) for name, amount in has.items()}
