"""The dispatcher: the only one that hands out prompts. Slots bound everything between admission and training."""

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.exceptions import RayActorError

from actors.prompts.feed import PromptFeed
from actors.prompts.prompt import Ticket
from actors.rollout.actor import Receipt
from deploy.run.fleet import RolloutFleet
from moments_service.messages.groups import GroupStatus


@dataclass(slots=True)
class GenerationTally:
    """What rollout actors reported since the tally was last taken."""

    tokens: int = 0
    redispatched: int = 0
    score_s: dict[int, float] = field(default_factory=dict)
    """Seconds in which each actor's verifiers worked."""

    def add(self, actor: int, receipt: Receipt) -> None:
        self.tokens += int(receipt.timings["tokens"])
        self.score_s[actor] = self.score_s.get(actor, 0.0) + receipt.timings["score_s"]


class Dispatcher:
    """Consumes: tickets of the feed. Waits for: free slots, then receipts. Ends: by `close`, or with its first error.

    A slot is taken when a ticket is admitted and given back when its group was trained on or closed, so that nothing is
    born stale and nothing slow is thrown away.
    """

    def __init__(
        self,
        feed: PromptFeed,
        fleet: RolloutFleet,
        moments: Any,
        embeddings: Mapping[str, np.ndarray],
        slots: int,
        group_timeout_s: float,
    ) -> None:
        self._feed = feed
        self._fleet = fleet
        self._moments = moments
        self._embeddings = embeddings
        self._group_timeout_s = group_timeout_s
        self._free_slots = slots
        # Tickets that wait for a slot: in flight when the run was checkpointed, or whose group was lost.
        self._waiting: deque[Ticket] = deque()
        self._in_flight: dict[str, tuple[Ticket, int]] = {}
        # Scored and not trained on yet; both with the actor that has, or will have, the payload.
        self._scored: dict[str, tuple[Ticket, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        self._unscored_in_a_row = 0
        self.tally = GenerationTally()
        fleet.on_death = self.bring_back

    def restore(self, tickets: Iterable[Ticket]) -> None:
        """Dispatch these first: they were in flight when the run was checkpointed."""
        self._waiting.extend(tickets)

    async def gather(self, groups: int) -> bool:
        """Wait until `groups` groups are scored and stand in the service's buffer. Raises what a rollout raised.

        False, before that, where as many groups in a row came back without any reward: a verifier that fails for
        everything would be asked for ever.
        """
        self._admit()
        while len(self._scored) < groups:
            if self._unscored_in_a_row >= groups:
                self._unscored_in_a_row = 0
                return False
            self._changed.clear()
            if self._failure is not None:
                raise self._failure
            await self._changed.wait()
        return True

    def release(self, group_ids: Iterable[str]) -> None:
        """Give back the slots of groups that were trained on, and admit prompts into them."""
        for group_id in group_ids:
            del self._scored[group_id]
            self._free_slots += 1
        self._admit()

    def lose(self, group_ids: Iterable[str]) -> None:
        """Groups whose payload died: sample their prompts again, as the next attempt."""
        for group_id in group_ids:
            if group_id not in self._scored:
                continue  # its actor died between submitting it and saying so; the prompt was dispatched again then
            ticket, _ = self._scored.pop(group_id)
            self._free_slots += 1
            self._waiting.append(ticket.next_attempt())
            self.tally.redispatched += 1
        self._admit()

    def unfinished(self) -> list[Ticket]:
        """Tickets that a checkpoint must carry: admitted, and not trained on."""
        admitted = [ticket for ticket, _ in (*self._in_flight.values(), *self._scored.values())]
        return sorted([*self._waiting, *admitted], key=lambda ticket: ticket.sequence)

    def waiting_for(self) -> str:
        """What a stall report says."""
        oldest = ", ".join(list(self._in_flight)[:5])
        return f"{len(self._in_flight)} groups in flight ({oldest}), {len(self._scored)} scored"

    def depths(self) -> dict[str, int]:
        """Groups on their way, and groups that wait to be trained on."""
        return {"in_flight": len(self._in_flight), "scored": len(self._scored)}

    def take_tally(self) -> GenerationTally:
        tally, self.tally = self.tally, GenerationTally()
        return tally

    async def close(self) -> None:
        """Stop admitting and drop what is in flight."""
        self._free_slots = -(10**9)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _admit(self) -> None:
        while self._free_slots > 0 and (actor := self._fleet.pick()) is not None:
            if not self._waiting:
                # One hand for all slots that are free, so that its completions can be spread over it.
                self._waiting.extend(self._feed.deal(self._free_slots))
            ticket = self._waiting.popleft()
            self._free_slots -= 1
            self._in_flight[ticket.group_id] = (ticket, actor)
            self._start(self._sample(ticket, actor), f"rollout {ticket.group_id}")

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self._failure is None:
            self._failure = task.exception()
        self._changed.set()

    async def _sample(self, ticket: Ticket, actor: int) -> None:
        call = self._fleet.rollout(actor, ticket, self._moments)
        try:
            receipt = await asyncio.wait_for(call, self._group_timeout_s)
        except TimeoutError:
            raise TimeoutError(
                f"rollout actor {actor} gave no receipt for group {ticket.group_id} in {self._group_timeout_s:g} s "
                "(rollout.group_timeout_s)"
            ) from None
        except RayActorError:
            self.bring_back(actor)  # while this group still counts as one of the actor's
            self._retry(ticket)
            return
        finally:
            self._fleet.done(actor)
        del self._in_flight[ticket.group_id]
        self.tally.add(actor, receipt)
        if receipt.status is GroupStatus.SCORED:
            self._scored[ticket.group_id] = (ticket, actor)
            self._unscored_in_a_row = 0
        else:
            self._unscored_in_a_row += 1
            self._free_slots += 1
            self._admit()

    def _retry(self, ticket: Ticket) -> None:
        """The group died with its actor: its prompt is sampled again, by whoever serves."""
        del self._in_flight[ticket.group_id]
        self._free_slots += 1
        self._waiting.append(ticket.next_attempt())
        self.tally.redispatched += 1
        self._admit()

    def bring_back(self, actor: int) -> None:
        """An actor died: close the groups it had as lost, sample their prompts again, and wait for its restart.

        Whoever notices says so; the first notice counts.
        """
        if not self._fleet.serving(actor):
            return
        self._fleet.suspend(actor)
        admitted = {**self._in_flight, **self._scored}
        orphans = tuple(group_id for group_id, (_, owner) in admitted.items() if owner == actor)
        self._start(self._revive(actor, orphans), f"revival of rollout actor {actor}")

    async def _revive(self, actor: int, orphans: tuple[str, ...]) -> None:
        self.lose(await self._moments.mark_lost.remote(orphans))
        started = time.monotonic()
        await self._fleet.revive(actor)
        self._fleet.log_revival(actor, time.monotonic() - started)
        self._admit()
