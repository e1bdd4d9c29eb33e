"""The life of every group of a run, in one place: who waits, who is sampled, who is ready, who is trained on."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from actors.prompts.feed import PromptFeed
from actors.prompts.prompt import Ticket


class Stage(StrEnum):
    """Where a group is in its life. It leaves from any stage by being released, closed, or sampled again."""

    WAITING = "waiting"
    """Admitted: it has a slot, and no rollout actor yet."""
    IN_FLIGHT = "in flight"
    """A rollout actor samples and scores it."""
    READY = "ready"
    """The moments service acknowledged it; its payload is alive with its actor."""
    LOST = "lost"
    """It was ready, and its payload died with its actor; it is sampled again once the moments service closed it."""
    DRAWN = "drawn"
    """It is in a batch that is trained on, or whose weights are on their way."""


@dataclass(slots=True)
class Group:
    """One group between its admission and its end."""

    ticket: Ticket
    stage: Stage = Stage.WAITING
    actor: int | None = None
    """Who samples it, and later holds its payload."""
    observed: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Once it is ready: what shaping rules saw of its completions where they were sampled."""


class NothingScoredError(RuntimeError):
    """As many groups as a batch has came back in a row without any reward: a verifier that fails for everything."""


class WorkBuffer:
    """Owner of every group between admission and release. It alone admits, orders, and names what is drawn.

    Producer: the feed, a ticket for each free slot. Consumers: the sampler (`next`), the training loop (`take`). Bound:
    `batch_groups * (max_staleness + 1)` slots; a slot is free again when its group was trained on *and* every serving engine holds the
    weights that came of it, or when the group is closed. At shutdown nothing needs to be done; `unfinished` is what a checkpoint carries.

    Batches are taken in strict feed order: `take` waits for the oldest groups that are open, however slow. So a group never waits for
    more than `max_staleness` batches: when it is admitted, at version v, fewer than `batch_groups * (max_staleness + 1)` open groups stand
    before it, and none that is admitted later can overtake. It is in one of the batches v to v + max_staleness, each of which is trained
    on at the version of its number.

    Where groups are passed by, up to `generation_batches` batches are sampled for one: what is trained on are the first groups
    of the feed that are not, whatever the order in which they came back, and the bound is one on places of the feed.
    """

    def __init__(self, feed: PromptFeed, batch_groups: int, max_staleness: int, generation_batches: int = 1) -> None:
        self._feed = feed
        self._batch_groups = batch_groups
        self._places_to_pass = (generation_batches - 1) * batch_groups
        # Since the last release: the first place that was dealt, and the groups that were passed by.
        self._first_place: int | None = None
        self._passed: list[Ticket] = []
        self._slots = batch_groups * (max_staleness + 1)
        self._groups: dict[str, Group] = {}
        # Ids of each step's batch, in feed order, until it is released.
        self._drawn: dict[int, tuple[str, ...]] = {}
        self._version = 0
        self._unscored_in_a_row = 0
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    def restore(self, tickets: Iterable[Ticket], version: int) -> None:
        """Begin with these, which were open when the run was checkpointed at policy `version`."""
        self._version = version
        for ticket in tickets:
            self._admit(ticket)

    def fill(self) -> None:
        """Admit tickets of the feed into every free slot, all at once: the feed spreads completions over them."""
        if (free := self._slots - len(self._groups)) > 0:
            for ticket in self._feed.deal(free):
                self._admit(ticket)

    def next(self) -> Ticket | None:
        """The oldest group that waits for an actor; None if none does."""
        waiting = (group.ticket for group in self._groups.values() if group.stage is Stage.WAITING)
        return min(waiting, key=_place, default=None)

    def sent(self, group_id: str, actor: int) -> None:
        """WAITING -> IN_FLIGHT: an actor has it."""
        group = self._at(group_id, Stage.WAITING)
        group.stage, group.actor = Stage.IN_FLIGHT, actor

    def ready(self, group_id: str, observed: Mapping[str, Sequence[float]] | None = None) -> None:
        """IN_FLIGHT -> READY: the moments service acknowledged it, with at least one reward. observed: for shaping, see `Group`."""
        group = self._at(group_id, Stage.IN_FLIGHT)
        group.stage, group.observed = Stage.READY, observed or {}
        self._unscored_in_a_row = 0
        self._changed.set()

    def close(self, group_id: str) -> None:
        """The group ended without any reward: nobody can train on it, and the next ticket takes its slot."""
        del self._groups[group_id]
        self._unscored_in_a_row += 1
        self.fill()
        self._changed.set()

    def may_pass(self, group_id: str) -> bool:
        """Whether a group may be left out of the batch, and the next ticket be sampled in its place."""
        assert self._first_place is not None
        return self._groups[group_id].ticket.sequence < self._first_place + self._places_to_pass

    def pass_by(self, group_id: str) -> None:
        """IN_FLIGHT -> closed: its rewards are history at the next commit, and the next ticket takes its slot.

        Until then a checkpoint carries it like the others: who resumes has not heard of its rewards.
        """
        self._passed.append(self._at(group_id, Stage.IN_FLIGHT).ticket)
        del self._groups[group_id]
        self._unscored_in_a_row = 0
        self.fill()
        self._changed.set()

    def died(self, actor: int) -> tuple[str, ...]:
        """READY -> LOST for every group whose payload this actor held. Returns their ids; groups in flight end by themselves."""
        lost = [group for group in self._groups.values() if group.actor == actor and group.stage is Stage.READY]
        for group in lost:
            group.stage = Stage.LOST
        return tuple(group.ticket.group_id for group in lost)

    def sample_again(self, group_id: str) -> None:
        """Any stage -> WAITING: what was sampled is lost. The prompt keeps its slot and its place in the feed, as the next attempt."""
        self._admit(self._groups.pop(group_id).ticket.next_attempt())

    async def take(self, step: int) -> tuple[str, ...]:
        """READY -> DRAWN: the ids of the batch of `step`, in feed order. Waits for the oldest `batch_groups` groups that are not drawn.

        Asked again for a batch that was neither released nor put back, it names the same groups. Raises what `fail` was told, and
        NothingScoredError once for every `batch_groups` groups in a row that ended without any reward.
        """
        while step not in self._drawn:
            self._changed.clear()
            if self._failure is not None:
                raise self._failure
            if self._unscored_in_a_row >= self._batch_groups:
                self._unscored_in_a_row = 0
                raise NothingScoredError(f"{self._batch_groups} groups in a row came back without any reward")
            oldest = self._oldest()
            if len(oldest) == self._batch_groups and all(group.stage is Stage.READY for group in oldest):
                for group in oldest:
                    group.stage = Stage.DRAWN
                self._drawn[step] = tuple(group.ticket.group_id for group in oldest)
            else:
                await self._changed.wait()
        return self._drawn[step]

    def observed(self, step: int) -> dict[str, Mapping[str, Sequence[float]]]:
        """What shaping rules saw of the groups of the batch of `step`, by id."""
        return {group_id: self._groups[group_id].observed for group_id in self._drawn[step]}

    def put_back(self, step: int) -> None:
        """DRAWN -> READY: nothing was learned from the batch of `step`."""
        for group_id in self._drawn.pop(step, ()):
            self._at(group_id, Stage.DRAWN).stage = Stage.READY
        self._changed.set()

    def release(self, step: int, version: int) -> None:
        """The batch of `step` was trained on, and every serving engine holds `version`: its slots are free, and filled again."""
        for group_id in self._drawn.pop(step):
            del self._groups[group_id]
        self._version = version
        self._first_place, self._passed = None, []
        self.fill()
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """Whoever waits in `take` gets this; the first one counts."""
        self._failure = self._failure or error
        self._changed.set()

    def unfinished(self) -> list[Ticket]:
        """Tickets that a checkpoint must carry: admitted, and not in a batch that was released, in feed order."""
        return sorted([*self._passed, *(group.ticket for group in self._groups.values())], key=_place)

    def depths(self) -> dict[str, int]:
        """Groups on their way, and groups that wait to be trained on."""
        stages = Counter(group.stage for group in self._groups.values())
        return {"in_flight": stages[Stage.IN_FLIGHT], "scored": stages[Stage.READY]}

    def waiting_for(self) -> str:
        """What a stall report says."""
        stages = Counter(group.stage for group in self._groups.values())
        counts = ", ".join(f"{stages[stage]} {stage}" for stage in Stage if stages[stage])
        missing = [group.ticket.group_id for group in self._oldest() if group.stage is not Stage.READY][:5]
        return f"groups: {counts or 'none'}; the batch waits for {', '.join(missing) or 'no group'}"

    def _admit(self, ticket: Ticket) -> None:
        self._groups[ticket.group_id] = Group(replace(ticket, born=self._version))
        self._first_place = min(ticket.sequence, ticket.sequence if self._first_place is None else self._first_place)

    def _oldest(self) -> list[Group]:
        open_ = (group for group in self._groups.values() if group.stage is not Stage.DRAWN)
        return sorted(open_, key=lambda group: _place(group.ticket))[: self._batch_groups]

    def _at(self, group_id: str, stage: Stage) -> Group:
        group = self._groups[group_id]
        if group.stage is not stage:
            raise RuntimeError(f"group {group_id} is {group.stage}, not {stage}")
        return group


def _place(ticket: Ticket) -> tuple[int, str]:
    return ticket.sequence, ticket.group_id
