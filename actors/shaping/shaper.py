"""Between the moments and the learner: a batch's advantages as its shaping rules want them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from actors.shaping.protocol import RememberingRule, Shaped, ShapingBatch, ShapingOptions
from moments_service.blend import Array
from moments_service.messages.batch import Batch

Observed = Mapping[str, Sequence[float]]
"""Of one group: by kind of rule, a number for each completion."""


class Shaper:
    """The rules of a run, with what they remember. The batch that it is given stays as it is, and so do the moments."""

    def __init__(self, rules: Sequence[ShapingOptions], max_tokens: int) -> None:
        """max_tokens: most tokens that a completion may have."""
        self._rules = {options.kind: options.create() for options in rules}
        self._max_tokens = max_tokens

    def __call__(self, batch: Batch, observed: Mapping[str, Observed] | None = None) -> Batch:
        """The batch with what its shaping adds to the advantages and metrics. Changes nothing: asked again, it says the same.

        observed: of each group, by id, what rules saw of it where it was sampled.
        """
        if not self._rules:
            return batch
        seen = ShapingBatch.of(batch, self._max_tokens, as_columns(batch, observed or {}))
        found = {kind: rule(seen) for kind, rule in self._rules.items()}
        advantages, parts = combined(batch.advantages, seen.rewards, list(found.values()))
        metrics = shaping_metrics(parts, list(found.values()), advantages)
        for kind, shaped in found.items():
            metrics |= {f"shaping/{kind}/{name}": value for name, value in shaped.metrics.items()}
        return replace(batch, advantages=advantages, metrics=batch.metrics | metrics)

    def learn(self, batch: Batch) -> None:
        """The batch was trained on: what rules remember of it counts from the next one on."""
        seen = ShapingBatch.of(batch, self._max_tokens)
        for rule in self._remembering().values():
            rule.learn(seen)

    def state(self) -> dict[str, Any]:
        """What rules remember, by kind, as JSON."""
        return {kind: rule.state() for kind, rule in self._remembering().items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; a rule that was not there begins with an empty memory."""
        for kind, rule in self._remembering().items():
            if kind in state:
                rule.load_state(state[kind])

    def _remembering(self) -> dict[str, RememberingRule]:
        return {kind: rule for kind, rule in self._rules.items() if isinstance(rule, RememberingRule)}


def as_columns(batch: Batch, observed: Mapping[str, Observed]) -> dict[str, Array]:
    """What rules saw of the groups of a batch, by kind: [M, G], NaN where there is no completion."""
    kinds = {kind for one in observed.values() for kind in one}
    columns = {kind: np.full(batch.table.rewards.shape, np.nan) for kind in kinds}
    for row, group_id in enumerate(batch.group_ids):
        for kind, values in observed.get(group_id, {}).items():
            columns[kind][row, : len(values)] = values
    return columns


def combined(advantages: Array, rewards: Array, found: Sequence[Shaped]) -> tuple[Array, Array]:
    """Advantages after shaping, and what was added to each reward. All [M, G], NaN where a completion has no reward.

    A_i = w_i (A_i(raw) + d_i - mean of d_j over the group's other completions), d = shaped - raw reward: like a leave-one-out baseline, so
    that what all completions of a group share pushes none of them. In units of reward, whatever the estimator's scale. A rule that
    stands alone has its own rewards for d, and no A(raw).
    """
    parts, weights = np.where(np.isnan(rewards), np.nan, 0.0), np.ones_like(rewards)
    for shaped in found:
        parts = parts + (shaped.rewards - rewards)
        weights = weights if shaped.weights is None else weights * shaped.weights
    alone = [shaped.rewards for shaped in found if shaped.alone]
    pushed = against_the_others(alone[0]) if alone else advantages + against_the_others(parts)
    return weights * pushed, parts


def against_the_others(values: Array) -> Array:
    """[M, G]: each value less the mean of the others of its row; 0 for one that is alone. NaN does not count, and stays."""
    there = ~np.isnan(values)
    others = there.sum(axis=1, keepdims=True) - 1
    total = np.where(there, values, 0.0).sum(axis=1, keepdims=True)
    compared = values - (total - values) / np.maximum(others, 1)
    return np.where(there & (others < 1), 0.0, compared)


def shaping_metrics(parts: Array, found: Sequence[Shaped], advantages: Array) -> dict[str, float]:
    """`shaping/mean`: mean of what was added to a reward.    `shaping/touched`: share of the completions with a reward for which
    that is not 0, or whose advantage was weighted.    `shaping/advantage_mean_abs`: mean |A| that the learner gets, where
    `advantage/mean_abs` is that before.
    """
    there = ~np.isnan(parts)
    touched = parts != 0.0
    for shaped in found:
        touched |= False if shaped.weights is None else shaped.weights != 1.0
    return {
        "shaping/mean": float(parts[there].mean()),
        "shaping/touched": float(touched[there].mean()),
        "shaping/advantage_mean_abs": float(np.abs(advantages[there]).mean()),
    }
