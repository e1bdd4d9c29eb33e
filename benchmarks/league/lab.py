"""One job: a policy trained in this process, with everything of the product but what distributes it."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.prompts.feed import PromptFeed
from actors.prompts.prompt import Ticket
from benchmarks.league.baselines import clusters_of, estimator_of
from benchmarks.league.jobs import Job
from benchmarks.league.judging import Judge
from benchmarks.league.learning import Learner
from benchmarks.league.measure import Measure
from benchmarks.league.policy import Policy
from benchmarks.league.sampling import Completions, answer_probabilities, sample
from benchmarks.league.tasks import Indices, Task, load_task, task_file
from benchmarks.league.tries import Prompts, read_prompts
from moments_service.blend import Array
from moments_service.estimators import Advantages, RewardBatch
from moments_service.estimators.base import carries_signal
from moments_service.estimators.grpo import grpo
from moments_service.messages.groups import PolicyMove
from moments_service.moments import CommittedRewards
from moments_service.moments.expected_signal import expected_signal
from moments_service.seeding import derive_seed
from moments_service.state import MomentsState

LOOK_EVERY = 10
"""Steps between two looks at held-out prompts."""


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one batch."""

    reward: float
    uniform: float
    """Share of groups whose rewards are all the same."""
    signal: float
    """Share of groups that any advantage pushes anywhere."""
    entropy: float
    """Of the sampler, nats per token."""
    length: float
    """Tokens of a completion."""
    baseline_error: float | None
    """Root mean square of baseline minus the prompt's exact success probability; None where nobody looked."""


class Lab:
    """Policy, feed and moments of one run. `step` is a policy step, from the prompts that are dealt to what history takes in."""

    def __init__(self, task: Task, job: Job) -> None:
        config = task.config
        self.task, self.job = task, job
        self.steps = job.steps or config.steps
        self.groups, remainder = divmod(job.completions, job.group_size)
        if remainder or not self.groups:
            raise ValueError(f"{job.completions} completions are no groups of {job.group_size}; take a multiple of it")
        if (config.sampling.temperature, config.sampling.top_p, config.sampling.top_k) != (1.0, 1.0, 0):
            raise ValueError("the league samples at temperature 1 from the whole distribution only")
        self.policy = Policy(task.policy)
        self.learner = Learner(self.policy, config.learner, self.steps, job.lr)
        self.judge = Judge(task.train)
        self.clusters = clusters_of(task, job.clusters, job.seed)
        self.moments, self.control = estimator_of(config.moments, job.estimator)
        self.state = MomentsState(self.moments, int(self.clusters.max()) + 1)
        self.feed = PromptFeed(task.train.prompts, derive_seed(job.seed, "feed"), job.group_size, order=job.order)
        self.rows = {prompt.prompt_id: row for row, prompt in enumerate(task.train.prompts)}
        self.generator = torch.Generator().manual_seed(derive_seed(job.seed, "sample"))
        self.done = 0
        self._inform_feed()

    def step(self, look: bool = False) -> Step:
        """Sample, judge, estimate, learn, remember. look: whether to compare the baselines with the truth."""
        tickets = self.feed.deal(self.groups)
        rows = np.array([self.rows[ticket.prompt.prompt_id] for ticket in tickets])
        tokens = [self.task.train.tokens[row] for row in rows]
        read = read_prompts(self.policy, tokens)
        prompts = read.detached()
        said = sample(
            self.policy,
            prompts,
            self.job.group_size,
            self.task.config.sampling.max_tokens,
            self.task.end,
            self.generator,
        )
        rewards = self.judge.rewards(rows, said)
        truth = self._truth(rows, prompts) if look or self.control else None
        batch = self._batch(tickets, rows, said, rewards)
        found = self.state.estimate(batch) if self.control is None else self.control(batch, _there(truth))
        self.learner.learn(read, said, found.values)
        fades = self.control is None and self.moments.estimator.fades_by_move
        self._fold(batch, self.learner.move(tokens, said, self.generator) if fades else None)
        self._inform_feed()
        return _report(batch, found, said, truth)

    def _truth(self, rows: Indices, prompts: Prompts) -> Array:
        answers = [self.task.train.answers[row] for row in rows]
        return self.judge.expected(rows, answer_probabilities(self.policy, prompts, answers))

    def _batch(self, tickets: list[Ticket], rows: Indices, said: Completions, rewards: Array) -> RewardBatch:
        clusters = self.clusters[rows]
        return RewardBatch(
            rewards=rewards,
            lengths=said.lengths.double().numpy(),
            prompts=tuple(ticket.prompt.prompt_id for ticket in tickets),
            history=self.state.history(clusters),
            clusters=clusters,
            score_norms=said.score_norms,
            surprisals=said.surprisals,
            born=np.full(len(rows), self.done, dtype=np.int64),
        )

    def _fold(self, batch: RewardBatch, move: PolicyMove | None) -> None:
        """What was learned from is history from now on, under the version that came of it."""
        assert batch.clusters is not None
        committed = CommittedRewards(
            clusters=batch.clusters,
            rewards=batch.rewards,
            prompts=batch.prompts,
            policy_version=self.done + 1,
            move=move,
            lengths=batch.lengths,
            score_norms=batch.score_norms,
            surprisals=batch.surprisals,
            born=batch.born,
        )
        self.state.fold(self.done, committed)
        self.done += 1

    def _inform_feed(self) -> None:
        if self.feed.adapts:
            history = self.state.history(np.arange(len(self.state.moments)))
            self.feed.learn(expected_signal(history, self.clusters, self.state.outcomes))


def train(job: Job, directory: Path, cache: Path, steps: Callable[[int], object] = lambda step: None) -> dict[str, Any]:
    """Do a job. directory: for snapshots.    cache: where the task's file is.    steps: called after each. Returns its result."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    task = load_task(task_file(job.task, cache))
    lab, measure = Lab(task, job), Measure(task)
    begin = {"train": measure.whole(lab.policy, "train"), "held_out": measure.whole(lab.policy, "held_out")}
    curve = [(0, measure.some(lab.policy))]
    rows: list[Step] = []
    training = 0.0
    for number in range(lab.steps):
        before = time.perf_counter()
        rows.append(lab.step(look=number % LOOK_EVERY == 0))
        training += time.perf_counter() - before
        if lab.done in job.snapshots:
            save_snapshot(lab, directory / "snapshots" / job.key / f"{lab.done}.safetensors")
        if lab.done % LOOK_EVERY == 0 or lab.done == lab.steps:
            curve.append((lab.done * job.completions, measure.some(lab.policy)))
        steps(lab.done)
    end = {"train": measure.whole(lab.policy, "train"), "held_out": measure.whole(lab.policy, "held_out")}
    return {
        "start": begin,
        "end": end,
        "curve": curve,
        "area": _area(curve),
        "steps": {name: [asdict(row)[name] for row in rows] for name in asdict(rows[0])},
        "visits": lab.steps * lab.groups / len(task.train.prompts),
        "training_seconds": round(training, 2),
        "seconds": round(time.perf_counter() - started, 2),
    }


def save_snapshot(lab: Lab, path: Path) -> None:
    """The policy as it is now."""
    from safetensors.torch import save

    from moments_service.durable import write_bytes

    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(lab.policy.tensors()))


def _there(truth: Array | None) -> Array:
    assert truth is not None
    return truth


def _report(batch: RewardBatch, found: Advantages, said: Completions, truth: Array | None) -> Step:
    uniform = ~carries_signal(grpo(batch).values)
    error = None if truth is None else float(np.sqrt(np.mean((found.baseline - truth) ** 2)))
    return Step(
        reward=float(batch.rewards.mean()),
        uniform=float(uniform.mean()),
        signal=float(found.carries_signal().mean()),
        entropy=said.entropy,
        length=float(said.lengths.float().mean()),
        baseline_error=error,
    )


def _area(curve: list[tuple[int, float]]) -> float:
    """Mean of a curve of (completions, level) over its completions, by trapezoids."""
    x, y = np.array(curve).T
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))
