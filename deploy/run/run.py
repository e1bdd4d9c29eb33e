"""A run: the services it is made of, the phases of its step, what it writes, and how it ends."""

import asyncio
import json
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.prompts.feed import PromptFeed
from actors.prompts.prompt import Prompt
from actors.prompts.sources import PromptPool
from deploy.config.models import RunConfig
from deploy.mirror.mirror import Mirror
from deploy.report.live import Display
from deploy.run.deadlines import Punctual
from deploy.run.dispatch import Dispatcher
from deploy.run.evaluation import Evaluation, measure
from deploy.run.fleet import RolloutFleet
from deploy.run.processes import RunProcess, driver_process, locate
from deploy.rundir.layout import RunDirectory
from deploy.rundir.live_file import LiveFile
from deploy.watching.watchers import Watchers
from learner.errors import PayloadLostError
from learner.group import LearnerGroup
from moments_service.health import Alarm, many_errors
from moments_service.messages.batch import Batch
from moments_service.messages.groups import PolicyMove

CLOSE_TIMEOUT_S = 5.0
"""What each part of a run gets for an orderly end before it is killed."""


PAUSE_POLL_S = 1.0
"""How often a paused run looks whether a person wants it to go on."""


class PhaseError(RuntimeError):
    """A phase of the training loop failed; the message names it, and the cause is chained."""


class HealthStopError(RuntimeError):
    """An alarm went off, and `moments.health.reaction` is to stop."""


def policy_move(learned: dict[str, float]) -> PolicyMove | None:
    """How far a policy step moved the policy; None where the learner does not measure it."""
    if "move_kl" not in learned:
        return None
    return PolicyMove(kl=learned["move_kl"], log_ratio=learned["move_log_ratio"])


def staleness_shares(batch: Batch, policy_version: int) -> dict[str, float]:
    """Share of the batch's groups by how many versions their oldest token is behind the policy that was trained."""
    behind = Counter((policy_version - batch.table.policy_versions[:, 0]).tolist())
    return {f"staleness/{versions}": count / behind.total() for versions, count in sorted(behind.items())}


class Run:
    """Everything that the training loop touches."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        pool: PromptPool,
        feed: PromptFeed,
        fleet: RolloutFleet,
        learner: LearnerGroup,
        moments: Punctual,
        dispatcher: Dispatcher,
        display: Display,
        incarnation: int,
        cluster_names: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.directory = directory
        self.pool = pool
        self.feed = feed
        self.fleet = fleet
        self.learner = learner
        self.moments = moments
        self.dispatcher = dispatcher
        self.display = display
        self.incarnation = incarnation
        self.live = LiveFile(directory.live)
        self.mirror: Mirror | None = None
        self.watchers = Watchers()
        self.cluster_names = cluster_names
        self.processes: list[RunProcess] = []
        self.step = 0
        self.policy_version = 0
        self.stopping = False
        self.phase_now: str | None = None
        self.interrupted: str | None = None
        """The phase that a cancellation fell into; a checkpoint is only whole outside of the phases that change state."""
        self._phases: dict[str, float] = defaultdict(float)
        self._last_checkpoint = -1
        # Actors are asked where they are at the start, and again once one came back.
        self._located_at = -1
        self._step_started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time one phase of the step, and give its name to whatever goes wrong in it."""
        started = time.perf_counter()
        self.phase_now = name
        try:
            yield
        except asyncio.CancelledError:
            self.interrupted = name
            raise
        except (PayloadLostError, HealthStopError):
            raise
        except Exception as error:
            raise PhaseError(f"step {self.step}, phase {name}: {error}") from error
        finally:
            self._phases[name] += time.perf_counter() - started
            self.phase_now = None

    async def bounded(self, waiting: Any) -> Any:
        """The result of `waiting`, or a report of what the run is stuck on past `stall_timeout_s`."""
        try:
            return await asyncio.wait_for(waiting, self.config.stall_timeout_s)
        except TimeoutError:
            raise TimeoutError(
                f"nothing for {self.config.stall_timeout_s:g} s (stall_timeout_s); {self.dispatcher.waiting_for()}"
            ) from None

    async def publish(self, version: int) -> None:
        """Send the learner's weights to every rollout actor that serves."""
        await self.fleet.publish(self.learner, version)
        self.policy_version = version

    async def gather(self) -> None:
        """Wait for a batch of scored groups; react where a whole batch of them came back without any reward."""
        while not await self.bounded(self.dispatcher.gather(self.config.batch_groups)):
            await self.react([many_errors(self.config.moments.health.error_share, 1.0)])

    async def react(self, alarms: Sequence[Alarm]) -> None:
        """Say what looks broken, before anything is learned from it, and pause or stop if the run is told to.

        A paused run waits until somebody removes `RUN/paused`. Raises HealthStopError.
        """
        for alarm in alarms:
            self.display.note(f"step {self.step}: ALARM: {alarm}")
            self.directory.append_alarm(self.step, alarm)
            self.watchers.alarm(self.step, alarm)
        reaction = self.config.moments.health.reaction
        if not alarms or reaction == "log":
            return
        happened = "; ".join(str(alarm) for alarm in alarms)
        if reaction == "stop":
            raise HealthStopError(
                f"{happened} (moments.health.reaction: stop). Nothing was learned from this batch; look at the verifier, then "
                f"go on with --resume {self.directory.path}"
            )
        self.directory.paused.write_text(f"{happened}\nRemove this file to go on.\n")
        self.display.note(f"paused; remove {self.directory.paused} to go on")
        try:
            while self.directory.paused.exists():  # noqa: ASYNC110 - a person removes the file, and nothing tells us
                await asyncio.sleep(PAUSE_POLL_S)
        except asyncio.CancelledError:
            # Nothing was learned from the batch: without it, what is left is a whole checkpoint.
            await self.moments.withdraw.remote(self.step, ())
            raise
        finally:
            self.directory.paused.unlink(missing_ok=True)

    async def lose(self, batch: Batch, lost: tuple[str, ...]) -> None:
        """Payloads of a batch died before it was trained on: take it back and sample those prompts again."""
        await self.moments.withdraw.remote(batch.step, lost)
        self.dispatcher.lose(lost)

    async def inform_feed(self) -> None:
        """Tell the feed what the moments expect of every cluster, before it deals again; nothing where it does not ask.

        A checkpoint need not hold it: the moments that a resume begins with say the same again.
        """
        if self.feed.adapts:
            self.feed.learn(await self.moments.expected_signal.remote())

    async def advance(self, batch: Batch) -> None:
        """The batch is history: free its slots, and count the step. From here on a checkpoint holds it."""
        if self._checkpoint_is_due(self.step + 1) and self.config.moments.clusters.adapt:
            # Before slots are freed: with nothing in flight no group is assigned by one version and folded by the next.
            await self.moments.adapt_clusters.remote()
        await self.inform_feed()
        self.dispatcher.release(batch.group_ids)
        self.step += 1

    async def finish_step(self, batch: Batch, learned: dict[str, float]) -> None:
        """Report the step that was just counted; evaluate and checkpoint when due."""
        tally = self.dispatcher.take_tally()
        phases = dict(self._phases)
        self._phases.clear()
        # Verifiers of one actor work one at a time and while others generate; the busiest actor's share is the wall time.
        phases["score"] = min(max(tally.score_s.values(), default=0.0), phases["generate"])
        phases["generate"] -= phases["score"]
        now = time.perf_counter()
        seconds, self._step_started = now - self._step_started, now
        row = {
            "step": self.step - 1,
            "incarnation": self.incarnation,
            "policy_version": self.policy_version,
            "seconds": seconds,
            "phases": phases,
            "tokens_per_s": tally.tokens / seconds,
            "groups_redispatched": tally.redispatched,
            **staleness_shares(batch, self.policy_version - 1),
            **batch.metrics,
            **{f"learner/{name}": value for name, value in learned.items()},
        }
        self.directory.append_metrics(row)
        services = await self.show_services(force=self.step >= self.config.steps)
        self.display.show_step(row, services["moments"])
        self.watchers.step(row, services)
        due = time.perf_counter()
        await self._when_due()
        # A step's time holds neither evaluations nor checkpoints.
        self._step_started += time.perf_counter() - due

    async def show_services(self, force: bool = False) -> dict[str, Any]:
        """Write the parts of the run as they stand, for people who watch. Returns them.

        force: write even where that takes more than its share of the time.
        """
        if self._located_at != self.fleet.starts:
            self._located_at = self.fleet.starts
            self.processes = [driver_process(), *await locate(self._actors())]
        stats: dict[str, Any] = await self.moments.stats.remote()
        services = self._services() | {"moments": stats}
        self.live.write(services, force)
        return services

    def _actors(self) -> dict[str, Any]:
        ranks = {f"learner rank {rank}": actor for rank, actor in enumerate(self.learner.ranks)}
        serving = enumerate(self.fleet.actors)
        rollouts = {f"rollout actor {index}": actor for index, actor in serving if self.fleet.serving(index)}
        return {"moments service": self.moments.actor} | ranks | rollouts

    def _services(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "incarnation": self.incarnation,
            "policy_version": self.policy_version,
            "slots": self.config.slots,
            **self.dispatcher.depths(),
            "actors": self.fleet.states(),
            "restarts": self.fleet.restarts,
            "cluster_names": self.cluster_names,
            "processes": [asdict(process) for process in self.processes],
        }

    def start_clock(self) -> None:
        """The first step begins now."""
        self._step_started = time.perf_counter()

    async def evaluate(self, prompts: tuple[Prompt, ...]) -> Evaluation:
        """pass@1 of the current policy on `prompts`, overall and per source."""
        return measure(prompts, await self.bounded(self.fleet.evaluate(prompts)))

    def report(self, split: str, evaluation: Evaluation) -> None:
        """Write an evaluation of the current policy down, and tell whoever watches."""
        self.directory.append_evaluation(self.step, split, evaluation)
        self.watchers.evaluation(self.step, split, evaluation)

    async def checkpoint(self) -> None:
        """Write everything that the next step depends on; complete or absent. Only between two steps."""
        if self._last_checkpoint == self.step:
            return
        partial = self.directory.begin_checkpoint(self.step)
        for part in ("learner", "moments"):
            (partial / part).mkdir()
        await self.learner.save(str(partial / "learner"))
        await self.moments.snapshot.remote(str(partial / "moments"))
        state = {
            "step": self.step,
            "policy_version": self.policy_version,
            "incarnation": self.incarnation,
            "feed": self.feed.state(in_flight=self.dispatcher.unfinished()),
        }
        (partial / "run.json").write_text(json.dumps(state))
        self.directory.finish_checkpoint(partial, self.step, self.config.checkpoint.keep)
        self._last_checkpoint = self.step

    async def keep_moments(self) -> None:
        """Leave the moments of a run that is done where `bvblend moments export` finds them."""
        final = self.directory.final_moments
        partial = final.with_name("partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        await self.moments.snapshot.remote(str(partial))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)

    async def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint; the moments service restored its part when it started."""
        state = json.loads((checkpoint / "run.json").read_text())
        await self.learner.load(str(checkpoint / "learner"))
        self.dispatcher.restore(self.feed.load_state(state["feed"]))
        self.step = self._last_checkpoint = state["step"]
        await self.publish(state["policy_version"])

    async def close(self) -> None:
        """End every actor of the run. Safe after errors."""
        await self.dispatcher.close()
        await asyncio.gather(
            self.fleet.close(CLOSE_TIMEOUT_S),
            self.learner.close(),
            self._close_moments(),
            self.watchers.close(finished=self.step >= self.config.steps),
        )

    async def _close_moments(self) -> None:
        import ray

        closing = self.moments.actor.close.remote()
        await asyncio.to_thread(ray.wait, [closing], timeout=CLOSE_TIMEOUT_S)
        ray.kill(self.moments.actor)

    async def _when_due(self) -> None:
        every = self.config.evaluation.every
        if every and self.step % every == 0 and self.step < self.config.steps:
            self.report("held_out", await self.evaluate(self.pool.held_out))
        if self._checkpoint_is_due(self.step):
            await self.checkpoint()
        if self.mirror is not None:
            self.mirror.look()

    def _checkpoint_is_due(self, step: int) -> bool:
        every = self.config.checkpoint.every
        return every > 0 and step % every == 0
