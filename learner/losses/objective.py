"""The loss of a microbatch: sum of aggregation * (correction * masks * loss + KL and entropy terms)."""

from dataclasses import replace

import torch

from learner.batching.pack import empty_batch
from learner.batching.packed import PackedBatch
from learner.config import LearnerConfig
from learner.losses.kl import kl_estimate
from learner.losses.metrics import Names, token_metrics
from learner.losses.old_logprobs import Interpolate, Recompute, Rollout, interpolated
from learner.losses.protocol import LossInputs, Measured, Need
from learner.masks import STATISTICS


class Objective:
    """What is minimised, as the configuration composes it. Pure."""

    def __init__(self, config: LearnerConfig, truncated_sampler: bool = False) -> None:
        """truncated_sampler: whether top-p or top-k cut what was sampled from, see `token_metrics`."""
        self.loss = config.loss
        self.correction = config.correction
        self.old_logprobs = config.old_logprobs
        self.masks = config.masks
        self.kl = config.kl
        self.entropy_coef = config.entropy_coef
        self.truncated_sampler = truncated_sampler
        in_reward = self.kl.coef if self.kl.place == "reward" else 0.0
        terms: dict[Need, float] = {"reference": self.kl.coef, "old": in_reward, "entropy": self.entropy_coef}
        wanted = frozenset(need for need, coefficient in terms.items() if coefficient > 0)
        self.needs = config.needs | wanted
        self.names = self._names()

    def __call__(
        self,
        batch: PackedBatch,
        logprobs: torch.Tensor,
        entropy: torch.Tensor,
        head_move: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Measured]:
        """(scalar loss of this rank's microbatch, what was measured).

        logprobs, entropy: [N] of the policy now.    head_move: [2, N] where a mask needs it, see `LossInputs`. Sums over microbatches and ranks are the loss of the batch, because the
        weights hold the whole aggregation. The correction weighs the policy loss, not the terms that hold the policy back.
        """
        given = replace(self._inputs(batch, logprobs, entropy), head_move=head_move)
        inputs = self._penalised(given)
        losses, measured = self.loss(inputs)
        losses, masked = self._masked(losses, given, batch.mask_statistics)
        correction, corrected = self.correction(inputs)
        losses = correction * losses
        if self.kl.coef > 0 and self.kl.place == "loss" and inputs.reference is not None:
            losses = losses + self.kl.coef * kl_estimate(logprobs, inputs.reference, self.kl.estimator)
        if self.entropy_coef > 0:
            losses = losses - self.entropy_coef * entropy
        trained = inputs.old if isinstance(self.old_logprobs, Recompute) else logprobs.detach()
        common = token_metrics(inputs, trained, self.truncated_sampler)
        every = [common, measured, corrected, *masked]
        means = {name: value for part in every for name, value in part.means.items()}
        maxima = {name: value for part in every for name, value in part.maxima.items()}
        if len(means) + len(maxima) != sum(len(part.means) + len(part.maxima) for part in every):
            raise ValueError("two metrics of the loss, its correction, its masks and the common ones have one name")
        return (batch.weights * losses).sum(), Measured(means, maxima)

    @torch.no_grad()
    def token_advantages(self, batch: PackedBatch, logprobs: torch.Tensor) -> torch.Tensor:
        """[N] advantages times what the correction lets each token count. logprobs: [N] of the policy before the update."""
        return self.correction(self._inputs(batch, logprobs, logprobs))[0] * batch.advantages

    def _inputs(self, batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> LossInputs:
        return LossInputs(
            logprobs=logprobs,
            entropy=entropy,
            old=self._old(batch, logprobs.detach()),
            reference=batch.reference_logprobs,
            rollout=batch.rollout_logprobs,
            advantages=batch.advantages,
            mask=batch.mask,
            lag=batch.lag,
            sample=batch.sample,
            group=batch.group,
            samples=batch.samples,
            groups=batch.groups,
        )

    def _old(self, batch: PackedBatch, now: torch.Tensor) -> torch.Tensor:
        """[N] what ratios start at: what a pass before the first update found, else by `learner.old_logprobs`; now where none was."""
        if batch.old_logprobs is not None:
            return batch.old_logprobs
        if isinstance(self.old_logprobs, Rollout):
            return batch.rollout_logprobs
        between = isinstance(self.old_logprobs, Interpolate)
        return interpolated(now, batch.rollout_logprobs, batch.lag) if between else now

    def _penalised(self, inputs: LossInputs) -> LossInputs:
        """With the KL taken off the advantages where that is its place: that of the policy before the first update."""
        if self.kl.coef == 0 or self.kl.place == "loss" or inputs.reference is None:
            return inputs
        penalty = self.kl.coef * kl_estimate(inputs.old, inputs.reference, self.kl.estimator)
        return replace(inputs, advantages=inputs.advantages - penalty)

    def _masked(
        self, losses: torch.Tensor, inputs: LossInputs, statistics: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[Measured]]:
        """The losses with what the masks add and leave out, by advantages that no KL was taken off."""
        rows = losses.new_zeros(len(self.masks), STATISTICS) if statistics is None else statistics
        parts = [mask(inputs, row) for mask, row in zip(self.masks, rows, strict=True)]
        for part in parts:
            losses = losses if part.penalties is None else losses + part.penalties
        for part in parts:
            losses = part.weights * losses
        return losses, [part.measured for part in parts]

    @torch.no_grad()
    def _names(self) -> Names:
        """Of everything that is reported: every rank must know them, also one that has nothing to train on."""
        zero = torch.zeros(1)
        _, measured = self(replace(empty_batch(), old_logprobs=zero, reference_logprobs=zero), zero, zero)
        return Names(tuple(sorted(measured.means)), tuple(sorted(measured.maxima)))
