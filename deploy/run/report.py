"""What a run says of itself while it goes on: a line a step, the state of its parts, evaluations; to files, people and watchers."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from deploy.cluster.processes import RunProcess, driver_process, locate
from deploy.report.live import Display
from deploy.run.sampling import Tally
from deploy.rundir.evaluation import Evaluation
from deploy.rundir.layout import RunDirectory
from deploy.rundir.live_file import LiveFile
from deploy.watching.watchers import Watchers
from moments_service.messages.batch import Batch

Actors = dict[str, Any]
"""Handles by role."""


def staleness_shares(batch: Batch, policy_version: int) -> dict[str, float]:
    """Share of the batch's groups by how many versions their oldest token is behind the policy that was trained."""
    behind = Counter((policy_version - batch.table.policy_versions[:, 0]).tolist())
    return {f"staleness/{versions}": count / behind.total() for versions, count in sorted(behind.items())}


def step_row(
    batch: Batch, learned: dict[str, float], tally: Tally, seconds: float, phases: dict[str, float], incarnation: int
) -> dict[str, Any]:
    """The line of metrics.jsonl of the step that trained on `batch`.

    seconds, phases: of the whole step and of its phases.    tally: of what was sampled meanwhile.
    """
    # Verifiers work while others generate; the busiest actor's share is the wall time.
    score = min(max(tally.score_s.values(), default=0.0), phases["generate"])
    phases = phases | {"generate": phases["generate"] - score, "score": score}
    return {
        "step": batch.step,
        "incarnation": incarnation,
        "policy_version": batch.step + 1,
        "seconds": seconds,
        "phases": phases,
        "tokens_per_s": tally.tokens / seconds,
        **tally.verifiers(seconds),
        "groups_redispatched": tally.redispatched,
        "groups_passed_by": tally.passed_by,
        **staleness_shares(batch, batch.step),
        **batch.metrics,
        **{f"learner/{name}": value for name, value in learned.items()},
    }


class Reporter:
    """Tells files, the display and watchers the same. The moments of every cluster are asked for no more often than live.json is
    written: there may be many clusters."""

    def __init__(self, directory: RunDirectory, display: Display, watchers: Watchers) -> None:
        self.display = display
        self.watchers = watchers
        self._directory = directory
        self._live = LiveFile(directory.live)
        self._clusters: dict[str, Any] = {}
        self._processes: list[RunProcess] = []
        self._starts_seen = -1

    async def locate(self, starts: int, actors: Callable[[], Actors]) -> None:
        """Find out where the actors run, unless that was done since an actor started last. starts: how often one did."""
        if self._starts_seen != starts:
            self._starts_seen = starts
            self._processes = [driver_process(), *await locate(actors())]

    async def services(
        self, state: dict[str, Any], clusters: Callable[[], Awaitable[dict[str, Any]]], force: bool = False
    ) -> dict[str, Any]:
        """Write the parts of the run as they stand, for people who watch. Returns them.

        state: of the driver and the moments service.    clusters: the moments of every cluster.    force: write now in any case.
        """
        write = force or self._live.due()
        with self._live.charged():
            if write:
                self._clusters = await clusters()
            state["moments"] = state["moments"] | {"clusters": self._clusters}
            services = state | {"processes": [asdict(process) for process in self._processes]}
            if write:
                self._live.write(services)
        return services

    def step(self, row: dict[str, Any], services: dict[str, Any]) -> None:
        """A step ended."""
        self._directory.append_metrics(row)
        self.display.show_step(row, services["moments"])
        self.watchers.step(row, services)

    def evaluations(self, step: int, measured: dict[str, Evaluation]) -> None:
        """The policy after `step` steps was evaluated; by split."""
        for split, evaluation in measured.items():
            self._directory.append_evaluation(step, split, evaluation)
            self.watchers.evaluation(step, split, evaluation)
