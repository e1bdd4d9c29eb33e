"""Sampling: groups that wait go to rollout actors, and what happens to them there is told to the owner of their life."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayActorError

from actors.deadline import LateError, within
from actors.prompts.prompt import Ticket
from actors.rollout.actor import Receipt
from deploy.run.fleet import RolloutFleet
from deploy.run.remote import Remote
from deploy.run.work import WorkBuffer
from moments_service.messages.groups import GroupStatus, ScoredGroup
from moments_service.messages.table import GroupTable

TIMED_OUT = "timed out"
"""Error of every completion of a group that no actor finished in time."""


@dataclass(slots=True)
class Tally:
    """What rollout actors reported since the tally was last taken."""

    tokens: int = 0
    redispatched: int = 0
    """Groups that were lost, or took too long, and are sampled again."""
    passed_by: int = 0
    """Groups of equal rewards that were left out of the batch."""
    score_s: dict[int, float] = field(default_factory=dict)
    """Seconds in which each actor's verifiers worked."""
    verdicts: int = 0
    generate_s: float = 0.0
    """Seconds in which groups were sampled, each by itself."""
    wait_s: float = 0.0
    """Seconds in which groups that had been sampled waited for verdicts, each by itself."""

    def add(self, actor: int, receipt: Receipt) -> None:
        self.tokens += int(receipt.timings["tokens"])
        self.score_s[actor] = self.score_s.get(actor, 0.0) + receipt.timings["score_s"]
        self.verdicts += int(receipt.timings["verdicts"])
        self.generate_s += receipt.timings["generate_s"]
        self.wait_s += receipt.timings["wait_s"]

    def verifiers(self, seconds: float) -> dict[str, float]:
        """How fast verifiers were: verdicts a second of the `seconds` that the tally is of, mean seconds of work on each, and the share of
        groups' time in which they were sampled and waited for verdicts. A group that waits keeps no engine from sampling others."""
        worked = sum(self.score_s.values())
        whole = self.generate_s + self.wait_s
        return {
            "verifier/verdicts_per_s": self.verdicts / seconds,
            "verifier/seconds": worked / self.verdicts if self.verdicts else 0.0,
            "verifier/waited": self.wait_s / whole if whole else 0.0,
        }


class Sampler:
    """Consumes: groups of the work buffer that wait. Waits for: receipts, at most `timeout_s` a group. Ends: by `close`, or with its
    first error, which `WorkBuffer.take` raises.

    A group that takes too long is taken back and sampled again, as long as its actor proves that it is alive; one that is too slow
    `attempts` times is closed with an error for each of its completions. A dead actor's groups are sampled again by the others.
    """

    def __init__(self, work: WorkBuffer, fleet: RolloutFleet, moments: Remote, timeout_s: float, attempts: int) -> None:
        self._work = work
        self._fleet = fleet
        self._moments = moments
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._tally = Tally()
        fleet.on_death = self.bring_back

    def pump(self) -> None:
        """Give every group that waits to an actor, for as long as one serves."""
        while not self._closed and (ticket := self._work.next()) is not None:
            if (actor := self._fleet.pick()) is None:
                return
            self._work.sent(ticket.group_id, actor)
            self._start(self._sample(ticket, actor), f"rollout {ticket.group_id}")

    def sample_again(self, group_ids: tuple[str, ...]) -> None:
        """What was sampled of these groups is lost; the moments service knows."""
        for group_id in group_ids:
            self._work.sample_again(group_id)
            self._tally.redispatched += 1
        self.pump()

    def bring_back(self, actor: int) -> None:
        """An actor died: its groups are lost and sampled again, and its restart is waited for. The first notice counts."""
        if self._fleet.serving(actor):
            self._fleet.suspend(actor)
            self._start(self._revive(actor, self._work.died(actor)), f"revival of rollout actor {actor}")

    def take_tally(self) -> Tally:
        tally, self._tally = self._tally, Tally()
        return tally

    async def close(self) -> None:
        """Start nothing any more, and drop what is in flight."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._work.fail(error)

    async def _sample(self, ticket: Ticket, actor: int) -> None:
        try:
            sampling = self._fleet.rollout(actor, ticket, self._moments.actor)
            receipt = await within(self._timeout_s, sampling, lambda: f"{ticket.group_id} takes too long")
        except LateError:
            if self._fleet.doubt(actor):
                self._start(self._probe(actor), f"probe of rollout actor {actor}")
            await self._too_slow(ticket)
            return
        except RayActorError:
            self.bring_back(actor)
            await self._lost((ticket.group_id,))
            return
        finally:
            self._fleet.done(actor)
        self._tally.add(actor, receipt)
        if receipt.uniform and self._work.may_pass(ticket.group_id):
            await self._moments.mark_lost((ticket.group_id,))
            self._work.pass_by(ticket.group_id)
            self._tally.passed_by += 1
            self.pump()
        elif receipt.status is GroupStatus.SCORED:
            self._work.ready(ticket.group_id, receipt.observed)
        else:
            self._work.close(ticket.group_id)
            self.pump()

    async def _lost(self, group_ids: tuple[str, ...]) -> None:
        """The service closes what it has of these groups, or gets yet, before their prompts are sampled again."""
        if group_ids:
            await self._moments.mark_lost(group_ids)
            self.sample_again(group_ids)

    async def _too_slow(self, ticket: Ticket) -> None:
        if ticket.attempt + 1 < self._attempts:
            await self._lost((ticket.group_id,))
            return
        await self._moments.mark_lost((ticket.group_id,))
        failed = nothing_of(ticket.next_attempt())
        await self._moments.submit_table(GroupTable.of([failed]), [None])
        self._work.close(ticket.group_id)
        self.pump()

    async def _probe(self, actor: int) -> None:
        """A slow actor gets nothing new until it proves that it is alive; one that does not answer is killed, and comes back."""
        if await self._fleet.answers(actor):
            self.pump()
        else:
            self.bring_back(actor)

    async def _revive(self, actor: int, lost: tuple[str, ...]) -> None:
        await self._lost(lost)
        started = time.monotonic()
        await self._fleet.revive(actor)
        self._fleet.log_revival(actor, time.monotonic() - started)
        self.pump()


def nothing_of(ticket: Ticket) -> ScoredGroup:
    """The header of a group that nobody finished: an error for each of its completions."""
    size = ticket.group_size
    return ScoredGroup(
        group_id=ticket.group_id,
        prompt_id=ticket.prompt.prompt_id,
        source=ticket.prompt.source,
        sequence=ticket.sequence,
        rewards=(None,) * size,
        errors=(TIMED_OUT,) * size,
        lengths=(0,) * size,
        truncated=(False,) * size,
        policy_versions=(ticket.born, ticket.born),
        difficulty=ticket.prompt.difficulty,
        status=GroupStatus.ERROR,
    )
