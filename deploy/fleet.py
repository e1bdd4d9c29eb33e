"""The rollout actors as the driver sees them: who serves, who is busy, who has to come back."""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Any

import numpy as np

from actors.actor import Receipt
from actors.fleet import spawn_rollout_actors
from actors.prompts import Prompt, Ticket
from deploy.config import RunConfig

logger = logging.getLogger(__name__)


class RolloutFleet:
    """Handles of all rollout actors. Ray restarts a dead one; it serves again once it has the newest weights."""

    def __init__(self, config: RunConfig, verifiers: Sequence[str]) -> None:
        """verifiers: names that the run's prompts ask for, so that a broken one is known before the first step."""
        self._config = config
        self.actors = spawn_rollout_actors(
            config.rollout,
            config.sampling,
            policy=config.policy,
            chat=config.prompts.chat,
            seed=config.seed,
            text_share=config.transcripts.share,
            text_chars=config.transcripts.max_chars,
            verifiers=verifiers,
            start_timeout_s=config.start_timeout_s,
        )
        self._load = [0] * len(self.actors)
        self._serving = [False] * len(self.actors)
        self.restarts = 0
        self.starts = 0
        """How often an actor began to serve."""
        # The newest weights, kept for actors that come back; None while the starting policy serves.
        self.latest_update: Any = None

    async def start(self) -> None:
        """Wait until every actor serves."""
        await asyncio.gather(*(self._ready(actor) for actor in range(len(self.actors))))

    def pick(self) -> int | None:
        """The least busy actor that serves, now busier by one; None if none serves."""
        serving = [actor for actor, serves in enumerate(self._serving) if serves]
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

    def states(self) -> list[dict[str, int | bool]]:
        """Whether each actor serves, and how many groups it works on."""
        return [{"serving": serves, "load": load} for serves, load in zip(self._serving, self._load, strict=True)]

    async def revive(self, actor: int) -> None:
        """Wait for Ray's restart of a dead actor and give it the newest weights."""
        self.restarts += 1
        logger.warning("rollout actor %d died; waiting for its restart", actor)
        await self._ready(actor)

    def log_revival(self, actor: int, seconds: float) -> None:
        logger.warning("rollout actor %d serves again after %.0f s", actor, seconds)

    def rollout(self, actor: int, ticket: Ticket, embedding: np.ndarray | None, moments: Any) -> Awaitable[Receipt]:
        """Sample, score and submit one group; the receipt comes after the moments service acknowledged it."""
        return self.actors[actor].rollout.remote(ticket, embedding, moments)

    async def evaluate(self, prompts: Sequence[Prompt]) -> list[list[float | None]]:
        """Rewards of fresh completions, [len(prompts)][evaluation.samples]; None where there is no reward."""
        settings = self._config.evaluation
        shares = [list(prompts[start :: len(self.actors)]) for start in range(len(self.actors))]
        results = await asyncio.gather(
            *(
                actor.evaluate.remote(share, settings.temperature, settings.samples)
                for actor, share in zip(self.actors, shares, strict=True)
            )
        )
        rewards: list[list[float | None]] = [[] for _ in prompts]
        for start, result in enumerate(results):
            rewards[start :: len(self.actors)] = result
        return rewards

    async def close(self, timeout_s: float) -> None:
        """End engines and verifiers, then the actors."""
        import ray

        closing = [actor.close.remote() for actor in self.actors]
        await asyncio.to_thread(ray.wait, closing, num_returns=len(closing), timeout=timeout_s)
        for actor in self.actors:
            ray.kill(actor, no_restart=True)

    async def _ready(self, actor: int) -> None:
        timeout_s = self._config.start_timeout_s
        try:
            await asyncio.wait_for(self.actors[actor].ready.remote(self.latest_update), timeout_s)
        except TimeoutError:
            raise TimeoutError(
                f"rollout actor {actor} did not start its engine in {timeout_s:g} s (start_timeout_s); "
                "its log says how far it came"
            ) from None
        self._serving[actor] = True
        self.starts += 1
