"""One job: a policy trained in this process, with everything of the product but what distributes it."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.prompts.feed import PromptFeed
from benchmarks.league.baselines import Contestant, clusters_of, kinship_of
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
from moments_service.moments.expected_signal import expected_signal
from moments_service.seeding import derive_seed

LOOK_EVERY = 10
"""Steps between two looks at held-out prompts."""

READ_ONCE = 0.5
"""Share of groups that the last batch taught anything by, above which prompts are read with a gradient."""


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one batch: of all that was sampled for it, but for `signal` and `baseline_error`."""

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


@dataclass(frozen=True, slots=True)
class Drawn:
    """The completions that one batch learns from, and what is known of them."""

    rows: Indices
    """[M] of the training prompts."""
    tokens: tuple[Indices, ...]
    """Of each prompt."""
    read: Prompts
    """The prompts, with a gradient where `learn` is going to use it."""
    said: Completions
    batch: RewardBatch
    """Its history is that of the lab's own estimator."""
    history: RewardBatch
    """All that was sampled, which becomes history."""


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
        self.kinship = kinship_of(task, job.clusters, job.seed)
        self.count = int(self.clusters.max()) + 1 if self.kinship is None else len(self.kinship)
        self.contestant = Contestant(config.moments, job.estimator, self.count, self.kinship)
        self.feed = PromptFeed(task.train.prompts, derive_seed(job.seed, "feed"), job.group_size, order=job.order)
        self.rows = {prompt.prompt_id: row for row, prompt in enumerate(task.train.prompts)}
        self.generator = torch.Generator().manual_seed(derive_seed(job.seed, "sample"))
        self.done, self.completions, self.taught = 0, 0, 1.0
        self._inform_feed()

    def step(self, look: bool = False) -> Step:
        """Sample, judge, estimate, learn, remember. look: whether to compare the baselines with the truth."""
        drawn = self.draw()
        truth = self.truth(drawn) if look or self.contestant.needs_truth else None
        found = self.contestant.estimate(drawn.batch, truth)
        self.learner.learn(drawn.tokens, drawn.read, drawn.said, found.values)
        self.taught = float((found.values != 0).any(axis=1).mean())
        move = self.learner.move(drawn.tokens, drawn.said, self.generator) if self.contestant.needs_move else None
        self.contestant.fold(self.done, drawn.history, move)
        self.done += 1
        self._inform_feed()
        return _report(drawn, found, truth)

    def draw(self) -> Drawn:
        """The completions of the next prompts, under the policy as it is, with their rewards."""
        if self.job.filter == "dapo":
            return self._filtered()
        rows, tokens, read, said = self._sampled(self.groups)
        batch = self._batch(rows, said)
        return Drawn(rows, tokens, read, said, batch, batch)

    def _filtered(self) -> Drawn:
        """The next groups whose rewards differ, as `prompts.filter: dapo` takes them; those between them are history only."""
        rows, _, _, said = self._sampled(self.groups)
        may_pass = (self.task.config.prompts.generation_batches - 1) * self.groups
        while True:
            batch = self._batch(rows, said)
            equal = (batch.rewards == batch.rewards[:, :1]).all(axis=1) & (self.job.group_size > 1)
            kept = np.flatnonzero(~equal | (np.arange(len(rows)) >= may_pass))
            if len(kept) >= self.groups:
                break
            more, _, _, also = self._sampled(self.groups - len(kept))
            rows, said = np.concatenate([rows, more]), said.and_of(also)
        tokens = tuple(self.task.train.tokens[row] for row in rows[kept])
        taken = said.of(torch.from_numpy(kept))
        read = read_prompts(self.policy, tokens)
        return Drawn(rows[kept], tokens, read, taken, self._batch(rows[kept], taken), batch)

    def _sampled(self, groups: int) -> tuple[Indices, tuple[Indices, ...], Prompts, Completions]:
        """The next prompts: rows, tokens, what was read, what was said."""
        dealt = self.feed.deal(groups)
        rows = np.array([self.rows[ticket.prompt.prompt_id] for ticket in dealt])
        tokens = tuple(self.task.train.tokens[row] for row in rows)
        # With a gradient it is read once for all, which is worth it where most of it is going to be learned from.
        with torch.set_grad_enabled(self.taught > READ_ONCE and self.job.filter == "none"):
            read = read_prompts(self.policy, tokens)
        most = self.task.config.sampling.max_tokens
        said = sample(self.policy, read.detached(), self.job.group_size, most, self.task.end, self.generator)
        self.completions += said.lengths.numel()
        return rows, tokens, read, said

    def _batch(self, rows: Indices, said: Completions) -> RewardBatch:
        clusters = self.clusters[rows]
        return RewardBatch(
            rewards=self.judge.rewards(rows, said),
            lengths=said.lengths.double().numpy(),
            prompts=tuple(self.task.train.prompts[row].prompt_id for row in rows),
            history=self.contestant.state.history(clusters),
            clusters=clusters,
            surprisals=said.surprisals,
            born=np.full(len(rows), self.done, dtype=np.int64),
        )

    def truth(self, drawn: Drawn) -> Array:
        """[M] exact mean reward of each prompt under the policy as it is."""
        answers = [self.task.train.answers[row] for row in drawn.rows]
        return self.judge.expected(drawn.rows, answer_probabilities(self.policy, drawn.read.detached(), answers))

    def _inform_feed(self) -> None:
        if self.feed.adapts:
            state = self.contestant.state
            history = state.history(np.arange(len(state.moments)))
            self.feed.learn(expected_signal(history, self.clusters, state.outcomes))


def train(job: Job, cache: Path, watch: Callable[[Lab], object] = lambda lab: None) -> dict[str, Any]:
    """Do a job. cache: where the task's file is.    watch: called before the first step and after each. Returns its result."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    task = load_task(task_file(job.task, cache))
    lab, measure = Lab(task, job), Measure(task)
    begin = {"train": measure.whole(lab.policy, "train"), "held_out": measure.whole(lab.policy, "held_out")}
    curve = [(0, measure.some(lab.policy))]
    rows: list[Step] = []
    training = 0.0
    watch(lab)
    for number in range(lab.steps):
        before = time.perf_counter()
        rows.append(lab.step(look=number % LOOK_EVERY == 0))
        training += time.perf_counter() - before
        if lab.done % LOOK_EVERY == 0 or lab.done == lab.steps:
            curve.append((lab.completions, measure.some(lab.policy)))
        watch(lab)
    end = {"train": measure.whole(lab.policy, "train"), "held_out": measure.whole(lab.policy, "held_out")}
    return {
        "start": begin,
        "end": end,
        "curve": curve,
        "area": _area(curve),
        "steps": {name: [asdict(row)[name] for row in rows] for name in asdict(rows[0])},
        "completions": lab.completions,
        "visits": round(lab.completions / job.group_size / len(task.train.prompts), 3),
        "training_seconds": round(training, 2),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _report(drawn: Drawn, found: Advantages, truth: Array | None) -> Step:
    uniform = ~carries_signal(grpo(drawn.history).values)
    error = None if truth is None else float(np.sqrt(np.mean((found.baseline - truth) ** 2)))
    return Step(
        reward=float(drawn.history.rewards.mean()),
        uniform=float(uniform.mean()),
        signal=float(found.carries_signal().mean()),
        entropy=drawn.said.entropy,
        length=float(drawn.history.lengths.mean()),
        baseline_error=error,
    )


def _area(curve: list[tuple[int, float]]) -> float:
    """Mean of a curve of (completions, level) over its completions, by trapezoids."""
    x, y = np.array(curve).T
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))
