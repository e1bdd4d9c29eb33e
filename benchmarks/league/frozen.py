"""Estimators on policies that do not move: how far their baselines are from the truth, and how much of the gradient is signal.

With A the advantages of a batch and g_i the gradient of the mean log-prob of the tokens of completion i, the update is U, the mean of
A_i g_i over completions, and its signal to noise |E U|^2 / tr Cov U. g_i is exact, and of one matrix: the output head (as if it were
not also the input's embedding). All estimators see the same completions, after as many batches of history as they like to have.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.league.baselines import Contestant
from benchmarks.league.jobs import Job
from benchmarks.league.lab import Drawn, Lab, train
from benchmarks.league.learning import token_weights
from benchmarks.league.sampling import predictors
from benchmarks.league.tasks import Indices
from moments_service.blend import Array
from moments_service.messages.groups import PolicyMove
from moments_service.seeding import derive_seed

MATURE = 60
"""Batches of history before anything is measured: after so many, a retention of .95 has forgotten the first."""
MEASURED = 200
"""Batches that are measured."""
REFERENCE = "rloo"
"""Signal to noise is also said as a share of this estimator's."""
_STILL = PolicyMove(kl=0.0, log_ratio=0.0)


@dataclass(slots=True)
class _Found:
    """What one estimator came to."""

    updates: list[torch.Tensor] = field(default_factory=list)
    squared_errors: list[float] = field(default_factory=list)


def train_and_measure(job: Job, cache: Path) -> dict[str, Any]:
    """Do a job, and measure the estimators that it names on the policies that it says. cache: where the task's file is."""
    found: dict[str, Any] = {}

    def watch(lab: Lab) -> None:
        if lab.done in job.frozen_at:
            found[str(lab.done)] = measure_frozen(lab)

    result = train(job, cache, watch)
    return result | {"frozen": found} if found else result


def measure_frozen(lab: Lab, mature: int = MATURE, measured: int = MEASURED) -> dict[str, Any]:
    """By estimator, at the policy that the lab has reached.

    `baseline_error`: root mean square of the baseline that it reports for a group, less the prompt's exact mean reward.
    `signal_to_noise`: of one batch.    `efficiency`: that as a share of RLOO's, with the standard error of its jackknife over batches.
    Prompts come as the lab would be dealt them next. Nothing of the lab changes.
    """
    lab = _apart(lab)
    specs = tuple(dict.fromkeys((*lab.job.frozen, REFERENCE)))
    contestants = {spec: Contestant(lab.task.config.moments, spec, lab.count, lab.kinship) for spec in specs}
    found = {spec: _Found() for spec in specs}
    for number in range(mature + measured):
        drawn = lab.draw()
        truth = lab.truth(drawn)
        parts = _parts(lab, drawn) if number >= mature else None
        for spec, contestant in contestants.items():
            estimated = contestant.estimate(drawn.batch, truth)
            if parts is not None:
                found[spec].updates.append(_update(parts, drawn, estimated.values))
                found[spec].squared_errors.append(float(np.mean((estimated.baseline - truth) ** 2)))
            contestant.fold(number, drawn.history, _STILL)
    grams = {spec: _gram(each.updates) for spec, each in found.items()}
    return {
        spec: {
            "baseline_error": round(float(np.mean(found[spec].squared_errors)) ** 0.5, 5),
            "signal_to_noise": round(signal_to_noise(grams[spec]), 6),
            **dict(zip(("efficiency", "efficiency_error"), _efficiency(grams[spec], grams[REFERENCE]), strict=True)),
        }
        for spec in specs
    }


def _apart(lab: Lab) -> Lab:
    """Another lab with the same policy, at the same place of the feed."""
    other = Lab(lab.task, lab.job)
    other.policy.load_state_dict(lab.policy.state_dict())
    other.feed.deal(lab.groups * lab.done)
    other.taught = 0.0  # nothing is learned, so no gradient
    other.generator.manual_seed(derive_seed(lab.job.seed, "frozen", lab.done))
    return other


@torch.no_grad()
def _parts(lab: Lab, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, V] and [N, H]: their outer products are the gradients of each token's log-prob by the head, weighted as in the loss."""
    said, mask = drawn.said, drawn.said.mask
    hidden = predictors(lab.policy, drawn.read, said.tokens, mask)
    scores = -lab.policy.logits(hidden).softmax(-1)
    scores[torch.arange(len(scores)), said.tokens[mask]] += 1.0
    return scores * token_weights(lab.task.config.learner, mask)[:, None], hidden


def _update(parts: tuple[torch.Tensor, torch.Tensor], drawn: Drawn, advantages: Array) -> torch.Tensor:
    group, member, _ = drawn.said.mask.nonzero(as_tuple=True)
    scores, hidden = parts
    of_token = torch.from_numpy(advantages.astype(np.float32))[group, member]
    return ((scores * of_token[:, None]).T @ hidden).flatten()


def _gram(updates: list[torch.Tensor]) -> Array:
    """[n, n] inner products of n updates."""
    stacked = torch.stack(updates)
    return (stacked @ stacked.T).double().numpy()


def signal_to_noise(gram: Array) -> float:
    """|E U|^2 / tr Cov U from inner products of n independent U, [n, n]; both unbiased, so that pure noise gives 0 on average."""
    n = len(gram)
    diagonal = float(np.trace(gram))
    across = (float(gram.sum()) - diagonal) / (n * (n - 1))
    return across / (diagonal / n - across)


def _efficiency(gram: Array, reference: Array) -> tuple[float, float]:
    """Ratio of two signals to noise that were measured on the same batches, and its standard error by the jackknife."""

    def ratio(kept: Indices) -> float:
        rows = np.ix_(kept, kept)
        return signal_to_noise(gram[rows]) / signal_to_noise(reference[rows])

    n = len(gram)
    every = np.arange(n)
    without = np.array([ratio(np.delete(every, place)) for place in range(n)])
    error = float(np.sqrt((n - 1) * np.mean((without - without.mean()) ** 2)))
    return round(ratio(every), 4), round(error, 4)
