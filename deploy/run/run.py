"""A run: its step, its parts, and what the lines of the training loop ask of them together."""

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from actors.deadline import within
from actors.prompts.feed import PromptFeed
from actors.prompts.prompt import Prompt
from actors.shaping.shaper import Shaper
from deploy.config.models import RunConfig
from deploy.evaluation.measure import measure
from deploy.mirror.mirror import Mirror
from deploy.run.checkpoints import Checkpoints
from deploy.run.clock import Clock
from deploy.run.health import HealthGuard, HealthStopError
from deploy.run.report import Reporter, step_row
from deploy.run.sampling import Sampler
from deploy.run.services import Services
from deploy.run.sync import WeightSync
from deploy.run.token_keeper import TokenKeeper
from deploy.run.work import NothingScoredError, WorkBuffer
from deploy.rundir.evaluation import Evaluation
from deploy.rundir.layout import RunDirectory
from deploy.rundir.resume import ResumePoint
from learner.errors import PayloadLostError
from moments_service.heap import freeze_heap
from moments_service.messages.batch import Batch
from moments_service.messages.groups import PolicyMove

T = TypeVar("T")

CLOSE_TIMEOUT_S = 5.0
"""What each part of a run gets for an orderly end before it is killed."""


class Run:
    """Everything that the training loop touches. The policy after `step` steps is version `step`, everywhere."""

    def __init__(
        self, config: RunConfig, directory: RunDirectory, services: Services, feed: PromptFeed, reporter: Reporter
    ) -> None:
        self.config = config
        self.directory = directory
        self.services = services
        self.feed = feed
        self.reporter = reporter
        self.moments, self.learner, self.fleet = services.moments, services.learner, services.fleet
        self.work = WorkBuffer(feed, config.batch_groups, config.max_staleness, config.generation_batches)
        rollout = config.rollout
        self.sampler = Sampler(self.work, self.fleet, self.moments, rollout.group_timeout_s, rollout.group_attempts)
        self.sync = WeightSync(self.learner, self.fleet)
        self.shaper = Shaper(config.shaping, config.sampling.max_tokens)
        self.health = HealthGuard(config.moments.health, directory, reporter.watchers, reporter.display.note)
        self.checkpoints = Checkpoints(config.checkpoint, directory, self.learner, self.moments, self._look_for_mirror)
        self.tokens = TokenKeeper(config, directory, self.learner, services.incarnation)
        self.clock = Clock()
        self.mirror: Mirror | None = None
        self.step = 0
        self.stopping = False
        self.remembered: dict[str, Any] = {}
        """What the moments service counted as of its last commit."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time one phase of the step, and give its name to whatever goes wrong in it."""
        return self.clock.timed(name, self.step, passed=(PayloadLostError, HealthStopError))

    async def restore(self, point: ResumePoint) -> None:
        """Go on from a checkpoint. The moments service restored its part when it started."""
        await self.learner.load(str(point.checkpoint / "learner"))
        self.step = point.step
        self.checkpoints.restored(self.step)
        self.shaper.load_state(point.state.get("shaping", {}))
        self.work.restore(self.feed.load_state(point.state["feed"], point.prompts), self.step)
        self.sync.start(self.step)
        await self.sync.settle()

    async def begin(self) -> None:
        """Everything stands: tell the feed what the moments know, and whoever watches what there is."""
        await self._inform_feed()
        self.remembered = await self.moments.stats()
        freeze_heap()
        await self._show_services(force=True)

    async def take(self) -> tuple[str, ...]:
        """Wait for a batch of scored groups, and name them; react where a whole batch of them has no reward at all."""
        self.work.fill()
        self.sampler.pump()
        while True:
            try:
                return await self._bounded(self.work.take(self.step))
            except NothingScoredError:
                await self.health.nothing_scored(self.step)

    def shaped(self, batch: Batch) -> Batch:
        """The batch as the learner gets it: with what the recipe's shaping makes of its advantages. The moments keep their own."""
        return self.shaper(batch, self.work.observed(self.step))

    async def react(self, batch: Batch) -> None:
        """Before anything is learned from the batch: say what looks broken, and pause or stop if the run is told to."""
        try:
            await self.health.react(self.step, batch.alarms)
        except asyncio.CancelledError:
            # Nothing was learned from the batch: without it, what is left is a whole checkpoint.
            await self._put_back(())
            raise

    async def sample_again(self, lost: tuple[str, ...]) -> None:
        """Payloads of the batch died before it was trained on: take it back, and sample those prompts again."""
        await self._put_back(lost)
        self.sampler.sample_again(lost)

    async def advance(self, batch: Batch) -> None:
        """The batch is history, and every engine has the weights that came of it: free its slots, and count the step.

        From here on a checkpoint holds it.
        """
        if self.checkpoints.due(self.step + 1) and self.config.moments.clusters.adapt:
            # Before slots are freed: with nothing in flight no group is assigned by one version and folded by the next.
            await self.moments.adapt_clusters()
        await self._inform_feed()
        self.shaper.learn(batch)
        self.work.release(self.step, self.step + 1)
        self.step += 1
        self.sampler.pump()

    async def after_step(self, batch: Batch, learned: dict[str, float]) -> None:
        """Report the step that was just counted; evaluate and checkpoint when due."""
        await self.tokens.keep(batch.step)
        seconds, phases = self.clock.end_step()
        row = step_row(batch, learned, self.sampler.take_tally(), seconds, phases, self.services.incarnation)
        row |= self.checkpoints.take_seconds() | self.feed.mixture(batch.table.prompt_ids)
        self.reporter.step(row, await self._show_services(force=self.step >= self.config.steps))
        with self.clock.stopped():
            every, held_out = self.config.evaluation.every, self.services.held_out
            if every and self.step % every == 0 and self.step < self.config.steps:
                await self.evaluate({"held_out": held_out})
            await self.checkpoints.refuse_failed()
            if self.checkpoints.due(self.step):
                await self.checkpoint()
            self._look_for_mirror()

    async def evaluate(self, splits: dict[str, Sequence[Prompt]]) -> dict[str, Evaluation]:
        """pass@1 of the current policy on every split that has prompts, overall and per source; written down and reported."""
        measured = {
            split: measure(prompts, await self._bounded(self.fleet.evaluate(prompts)))
            for split, prompts in splits.items()
            if prompts
        }
        self.reporter.evaluations(self.step, measured)
        return measured

    async def checkpoint(self) -> None:
        """Begin to write everything that the next step depends on, unless that was done. Only between two steps."""
        await self.checkpoints.write(self.step, self._state, self.feed.fingerprints)

    async def close(self) -> None:
        """End every part of the run. Safe after errors."""
        await self.sampler.close()
        await self.sync.close()
        await self.checkpoints.close()
        await asyncio.gather(
            self.services.close(CLOSE_TIMEOUT_S),
            self.reporter.watchers.close(finished=self.step >= self.config.steps),
        )

    def _look_for_mirror(self) -> None:
        if self.mirror is not None:
            self.mirror.look()

    def _state(self) -> dict[str, Any]:
        return {
            "run": self.directory.identity(),
            "step": self.step,
            "policy_version": self.step,
            "incarnation": self.services.incarnation,
            "feed": self.feed.state(in_flight=self.work.unfinished()),
            "shaping": self.shaper.state(),
        }

    async def _put_back(self, lost: tuple[str, ...]) -> None:
        await self.moments.withdraw(self.step, lost)
        self.work.put_back(self.step)

    async def _inform_feed(self) -> None:
        """Tell the feed what the moments expect of every cluster, before it deals again; nothing where it does not ask.

        A checkpoint need not hold it: the moments that a resume begins with say the same again.
        """
        if self.feed.adapts:
            before = self.feed.shares
            self.feed.learn(await self.moments.expected_signal())
            if (shares := self.feed.shares) != before:
                told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share)
                self.reporter.display.note(f"curriculum: from here on the feed is shared by {told}")

    async def _show_services(self, force: bool = False) -> dict[str, Any]:
        await self.reporter.locate(self.fleet.starts, self.services.actors)
        state = {
            "step": self.step,
            "incarnation": self.services.incarnation,
            "policy_version": self.step,
            "slots": self.config.slots,
            **self.work.depths(),
            "actors": self.fleet.states(),
            "restarts": self.fleet.restarts,
            "cluster_names": self.services.cluster_names,
            "moments": self.remembered,
        }
        return await self.reporter.services(state, self.moments.cluster_stats, force)

    async def _bounded(self, waiting: Awaitable[T]) -> T:
        """The result of `waiting`, or a report of what the run is stuck on past `stall_timeout_s`."""
        timeout_s = self.config.stall_timeout_s
        return await within(
            timeout_s, waiting, lambda: f"nothing for {timeout_s:g} s (stall_timeout_s); {self.work.waiting_for()}"
        )


def policy_move(learned: dict[str, float]) -> PolicyMove | None:
    """How far a policy step moved the policy; None where the learner does not measure it."""
    if "move_kl" not in learned:
        return None
    return PolicyMove(kl=learned["move_kl"], log_ratio=learned["move_log_ratio"])
