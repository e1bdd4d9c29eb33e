"""The rollout actors as the driver sees them: who serves, who is busy, who has to come back."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup

from actors.deadline import LateError, within
from actors.placement import addresses, alive_nodes, give_back, no_room, reserve
from actors.prompts.prompt import Prompt, Ticket
from actors.rollout.actor import Receipt
from actors.rollout.evaluated import EvaluatedGroup
from actors.rollout.spawn import rollout_part, spawn_rollout_actors
from actors.weights.offer import WeightOffer, WeightsReleasedError
from deploy.config.models import RunConfig
from deploy.config.rollout_spec import rollout_spec
from deploy.evaluation.draw import evaluation_draw
from deploy.run.errors import ServiceDiedError, in_a_sentence

logger = logging.getLogger(__name__)


class RolloutFleet:
    """Handles of all rollout actors. Ray restarts a dead one, on another node if its own is gone; it serves again once it
    has the newest weights. The run goes on for as long as one of them serves."""

    def __init__(self, config: RunConfig, verifiers: Sequence[str]) -> None:
        """Starts nothing. verifiers: names that the run's prompts ask for, so that a broken one is known before the first step."""
        self._config = config
        self._part = rollout_part(config.rollout)
        self._verifiers = verifiers
        self._places: PlacementGroup | None = None
        self.actors: list[Any] = []
        self._load = [0] * config.rollout.actors
        self._serving = [False] * config.rollout.actors
        # Actors that were too slow and have not proved yet that they are alive.
        self._doubted: set[int] = set()
        self._somebody_serves = asyncio.Event()
        # Of each actor that serves, what ends when it dies.
        self._watches: dict[int, asyncio.Task[None]] = {}
        self.restarts = 0
        self.starts = 0
        """How often an actor began to serve."""
        # The newest weights, kept for actors that come back; None while the starting policy serves.
        self.latest_offer: WeightOffer | None = None
        # Held while weights are on their way: an actor that comes back meanwhile waits, and takes those.
        self._publishing = asyncio.Lock()
        self.on_death: Callable[[int], None] = self.suspend
        """Called with every actor that turns out to be dead."""

    async def start(self) -> None:
        """Reserve places, start the actors in them and wait until every one serves. Raises NoRoomError, TimeoutError."""
        config = self._config
        self._places = await reserve(self._part, config.start_timeout_s)
        spec = rollout_spec(config, self._verifiers)
        self.actors = spawn_rollout_actors(spec, self._places)
        await asyncio.gather(*(self._started(actor) for actor in range(len(self.actors))))

    def pick(self) -> int | None:
        """The least busy actor that serves, now busier by one; None if none serves."""
        serving = [actor for actor in self._now_serving() if actor not in self._doubted]
        if not serving:
            return None
        actor = min(serving, key=lambda candidate: self._load[candidate])
        self._load[actor] += 1
        return actor

    def done(self, actor: int) -> None:
        """One group of this actor ended, however it did."""
        self._load[actor] -= 1

    def serving(self, actor: int) -> bool:
        return self._serving[actor]

    def suspend(self, actor: int) -> None:
        """Give it nothing until it is back."""
        self._serving[actor] = False
        if not self._now_serving():
            self._somebody_serves.clear()

    def states(self) -> list[dict[str, int | bool]]:
        """Whether each actor serves, and how many groups it works on."""
        return [{"serving": serves, "load": load} for serves, load in zip(self._serving, self._load, strict=True)]

    def nodes(self) -> list[str | None]:
        """Address of each actor's node; None for one that lost its node and found no other."""
        return addresses(self._places) if self._places is not None else []

    async def revive(self, actor: int) -> None:
        """Wait for Ray's restart of a dead actor and give it the newest weights, however long that takes while others serve.

        Raises TimeoutError if nobody serves past `start_timeout_s`.
        """
        self.restarts += 1
        left = len(self._now_serving())
        meanwhile = f"going on with {left} of {len(self.actors)}" if left else "nobody samples"
        logger.warning("rollout actor %d died; %s until it is back", actor, meanwhile)
        returning = asyncio.ensure_future(self._ready(actor))
        try:
            while not (await asyncio.wait([returning], timeout=self._config.start_timeout_s))[0]:
                why = self._why_missing(actor)
                if not self._now_serving():
                    raise TimeoutError(f"no rollout actor serves, and {why}")
                logger.warning("%s; the run goes on without it", why)
            await returning
        finally:
            returning.cancel()

    def log_revival(self, actor: int, seconds: float) -> None:
        logger.warning("rollout actor %d serves again after %.0f s, on %s", actor, seconds, self.nodes()[actor])

    async def rollout(self, actor: int, ticket: Ticket, moments: Any) -> Receipt:
        """Sample, score and submit one group; the receipt comes after the moments service acknowledged it.

        Raises RayActorError where the actor dies before that, ServiceDiedError where the moments service does. Who stops waiting
        takes the call back.
        """
        try:
            receipt: Receipt = await self._answer(actor, self.actors[actor].rollout.remote(ticket, moments))
        except RayTaskError as error:  # raised in the actor, which therefore lives
            if isinstance(error, RayActorError):
                raise ServiceDiedError("the moments service died before it answered submit_table") from error
            raise
        return receipt

    def doubt(self, actor: int) -> bool:
        """Give a slow actor nothing new until `answers` has asked it. False where it is being asked already."""
        first = actor not in self._doubted
        self._doubted.add(actor)
        return first

    async def answers(self, actor: int) -> bool:
        """Whether an actor answers within `rollout.update_timeout_s`. One that does not is killed, and Ray starts it again."""
        when = "is asked whether it is alive"
        try:
            asked = self._answer(actor, self.actors[actor].ready.remote(self.latest_offer))
            await within(self._config.rollout.update_timeout_s, asked, lambda: when)
            return True
        except RayActorError:
            return False
        except LateError:
            self._kill(actor, when)
            return False
        finally:
            self._doubted.discard(actor)

    async def deliver(self, offer: WeightOffer) -> None:
        """Give new weights to every actor that serves. One that dies over it, or does not take them within
        `rollout.update_timeout_s` and is killed, comes back with them. Raises RuntimeError for one that fails otherwise."""
        async with self._publishing:
            self.latest_offer = offer
            taking = {
                actor: asyncio.ensure_future(self._answer(actor, self.actors[actor].take.remote(offer)))
                for actor in self._now_serving()
            }
            if taking:
                await asyncio.wait(taking.values(), timeout=self._config.rollout.update_timeout_s)
            failed: dict[int, BaseException] = {}
            for actor, answer in taking.items():
                if not answer.done():
                    answer.cancel()
                    self._kill(actor, f"is to take policy version {offer.version}")
                    self.on_death(actor)
                elif isinstance(error := answer.exception(), RayActorError):
                    self.on_death(actor)
                elif error is not None:
                    failed[actor] = error
            for actor, error in failed.items():
                raise RuntimeError(
                    f"rollout actor {actor} failed while taking policy version {offer.version}: {in_a_sentence(error)}"
                ) from error

    async def evaluate(self, prompts: Sequence[Prompt]) -> list[EvaluatedGroup]:
        """`evaluation.samples` fresh completions of each prompt, judged.

        What an actor did not finish before it died is sampled again by the others.
        """
        found: dict[int, EvaluatedGroup] = {}
        while left := [place for place in range(len(prompts)) if place not in found]:
            await self._somebody_serves.wait()
            await self._evaluate(prompts, left, found)
        return [found[place] for place in range(len(prompts))]

    async def close(self, timeout_s: float) -> None:
        """End engines and verifiers, then the actors, and give their places back."""
        for watch in self._watches.values():
            watch.cancel()
        closing = [actor.close.remote() for actor in self.actors]
        if closing:
            await asyncio.to_thread(ray.wait, closing, num_returns=len(closing), timeout=timeout_s)
        for actor in self.actors:
            ray.kill(actor, no_restart=True)
        if self._places is not None:
            await give_back(self._places)

    async def _evaluate(
        self, prompts: Sequence[Prompt], places: Sequence[int], found: dict[int, EvaluatedGroup]
    ) -> None:
        """Add what actors find at these places; nothing of those that die over it."""
        how = evaluation_draw(self._config)
        serving = self._now_serving()
        shares = [places[start :: len(serving)] for start in range(len(serving))]
        results = await asyncio.gather(
            *(
                self._answer_while_alive(actor, self.actors[actor].evaluate.remote([prompts[i] for i in share], how))
                for actor, share in zip(serving, shares, strict=True)
            ),
            return_exceptions=True,
        )
        for actor, share, result in zip(serving, shares, results, strict=True):
            if isinstance(result, RayActorError):
                self.on_death(actor)
            elif isinstance(result, BaseException):
                raise result
            else:
                found |= dict(zip(share, result, strict=True))

    async def _answer(self, actor: int, call: ray.ObjectRef) -> Any:
        """What an actor that serves answers. Raises RayActorError where it dies before that.

        Ray keeps a call to an actor that it is restarting for that actor's next life, which may never come; such a call is
        taken back, and so is one that nobody waits for any more.
        """
        answer = asyncio.ensure_future(call)
        try:
            await asyncio.wait({answer, self._watches[actor]}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
        finally:
            if not answer.done():
                answer.cancel()
                ray.cancel(call)
        raise ActorUnavailableError(f"rollout actor {actor} died before it answered", None)

    async def _answer_while_alive(self, actor: int, call: ray.ObjectRef) -> Any:
        """What an actor answers, however long it takes for as long as it says every `rollout.update_timeout_s` that it is alive.

        Raises RayActorError where it dies, or hangs and is killed.
        """
        answer = asyncio.ensure_future(self._answer(actor, call))
        try:
            while not (await asyncio.wait({answer}, timeout=self._config.rollout.update_timeout_s))[0]:
                if not await self.answers(actor):
                    raise ActorUnavailableError(f"rollout actor {actor} does not answer", None)
            return answer.result()
        finally:
            answer.cancel()

    def _kill(self, actor: int, when: str) -> None:
        logger.warning(
            "rollout actor %d does not answer in %g s (rollout.update_timeout_s) when it %s; it is ended, and started again",
            *(actor, self._config.rollout.update_timeout_s, when),
        )
        ray.kill(self.actors[actor], no_restart=False)

    def _now_serving(self) -> list[int]:
        return [actor for actor, serves in enumerate(self._serving) if serves]

    async def _started(self, actor: int) -> None:
        timeout_s = self._config.start_timeout_s
        late = f"rollout actor {actor} did not start its engine in {timeout_s:g} s (start_timeout_s); its log says how far it came"
        await within(timeout_s, self._ready(actor), lambda: late)

    async def _ready(self, actor: int) -> None:
        """Wait until the actor has the newest weights, also where newer ones come while it takes them; then it serves."""
        while not self._serving[actor]:
            offer = self.latest_offer
            try:
                await self.actors[actor].ready.remote(offer)
            except WeightsReleasedError:
                if offer is self.latest_offer:
                    raise
                continue
            async with self._publishing:
                self._serving[actor] = offer is self.latest_offer
        self.starts += 1
        self._watches[actor] = asyncio.create_task(self._watch(actor))
        self._somebody_serves.set()

    async def _watch(self, actor: int) -> None:
        """Waits for: the actor's end. A death between two calls would go unnoticed: Ray keeps calls until its restart."""
        try:
            await self.actors[actor].live.remote()
        except RayActorError:
            self.on_death(actor)

    def _why_missing(self, actor: int) -> str:
        timeout_s = self._config.start_timeout_s
        if self.nodes()[actor] is None:
            return f"rollout actor {actor} is not back after {timeout_s:g} s: {no_room(replace(self._part, count=1), alive_nodes())}"
        return f"rollout actor {actor} did not start its engine again in {timeout_s:g} s (start_timeout_s)"
