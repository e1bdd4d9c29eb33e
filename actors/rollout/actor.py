"""The Ray shell around a rollout worker: weights come in, scored groups go out."""

import asyncio
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.engines.protocol import EngineDeadError
from actors.prompts.prompt import Prompt, Ticket
from actors.rollout.evaluated import EvaluatedGroup, EvaluationDraw
from actors.rollout.sender import GroupSender
from actors.rollout.spec import RolloutSpec
from actors.rollout.worker import RolloutWorker
from actors.weights.offer import WeightError, WeightOffer
from actors.weights.transport import fetched
from moments_service.heap import freeze_heap
from moments_service.messages.groups import GroupStatus

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the driver learns about a group that the moments service acknowledged."""

    group_id: str
    status: GroupStatus
    timings: dict[str, float]
    """See `SampledGroup.timings`."""
    uniform: bool = False
    """Whether it has two rewards or more, and all of them are equal."""
    observed: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """See `SampledGroup.observed`."""


class RolloutActor:
    """One engine in one process; made by `actors.rollout.spawn.spawn_rollout_actors`.

    States: new (nothing loaded; also after Ray restarted it), serving, closed. `ready` and `take` lead from new
    to serving, because both leave the weights in it that the driver wants; rollouts that come earlier wait for that.
    A dead engine, or one whose weights are in doubt, ends the process, so that Ray starts a new one.

    There is no concurrency group for control: Ray gives each group an event loop of its own, and an engine lives in one.
    """

    def __init__(self, spec: RolloutSpec, index: int) -> None:
        """Loads nothing: Ray runs this again at a restart, when the newest weights are not known here.

        index: this actor's place among the rollout actors.
        """
        self._spec, self._index = spec, index
        self._transport = spec.weights.create()
        self._worker: RolloutWorker | None = None
        self._sender: GroupSender | None = None
        self._changing = asyncio.Lock()
        self._serving = asyncio.Event()
        self._ended = asyncio.Event()

    async def ready(self, offer: WeightOffer | None = None) -> int:
        """Start the engine if it is not, take `offer` if it is newer, and serve. Returns the policy version.

        offer: the newest weights; None while the starting policy is the newest. May be called again at any time. Raises
        WeightsReleasedError where they are not the newest any more.
        """
        with self._ending_with_the_engine():
            async with self._changing:
                worker = await self._started()
                if offer is not None and offer.version > worker.policy_version:
                    await worker.take(await fetched(offer, self._transport))
                self._serving.set()
                return worker.policy_version

    @ray.method(max_task_retries=0)
    async def take(self, offer: WeightOffer) -> None:
        """Take new weights; an actor that Ray has just restarted starts with them."""
        with self._ending_with_the_engine():
            async with self._changing:
                worker = await self._started()
                await worker.take(await fetched(offer, self._transport))
                self._serving.set()

    # Never run twice under one id: the rewards could differ. The driver dispatches a lost group as its next attempt.
    @ray.method(max_task_retries=0)
    async def rollout(self, ticket: Ticket, moments: Any) -> Receipt:
        """Sample and score one group and submit it. Returns when `moments`, the MomentsActor, acknowledged it."""
        worker = await self._serving_worker()
        with self._ending_with_the_engine():
            group = await worker.rollout(ticket)
        header = group.header
        # Nobody trains on a group without rewards.
        payload = ray.put(group.samples) if header.status is GroupStatus.SCORED else None
        self._sender = self._sender or GroupSender(moments)
        await self._sender.submit(header, payload, group.transcript)
        return Receipt(header.group_id, header.status, group.timings, header.uniform, group.observed)

    @ray.method(max_task_retries=0)
    async def evaluate(self, prompts: Sequence[Prompt], how: EvaluationDraw) -> list[EvaluatedGroup]:
        """See `RolloutWorker.evaluate`; nothing of it reaches the moments service."""
        worker = await self._serving_worker()
        with self._ending_with_the_engine():
            return await worker.evaluate(prompts, how)

    @ray.method(max_task_retries=0)
    async def live(self) -> None:
        """Returns when the actor is closed. A call that dies tells the driver of the actor's death, whatever else it waits for."""
        await self._ended.wait()

    @ray.method(max_task_retries=0)
    async def close(self) -> None:
        """End the engine and the verifiers; what is running fails. The process stays until it is killed."""
        self._ended.set()
        if self._worker is not None:
            await self._worker.close()

    async def _started(self) -> RolloutWorker:
        if self._worker is None:
            worker = RolloutWorker(self._spec, self._index)
            await worker.start()
            self._worker = worker
            freeze_heap()
        return self._worker

    async def _serving_worker(self) -> RolloutWorker:
        try:
            await asyncio.wait_for(self._serving.wait(), self._spec.start_timeout_s)
        except TimeoutError:
            # The driver may not know that this actor was restarted; a call that dies tells it.
            logger.critical("nobody called ready() within %g s of a rollout; ending", self._spec.start_timeout_s)
            _end_process()
        return await self._started()

    @contextmanager
    def _ending_with_the_engine(self) -> Iterator[None]:
        try:
            yield
        except (EngineDeadError, WeightError):
            if self._ended.is_set():
                raise
            logger.critical("this rollout actor ends, and Ray starts a new one", exc_info=True)
            _end_process()


def _end_process() -> None:
    logging.shutdown()
    os._exit(1)
