"""The learner's update without its distribution: the same loss, aggregation, clipping, optimiser and schedule."""

import numpy as np
import torch

from benchmarks.league.policy import Policy
from benchmarks.league.sampling import Completions, token_logprobs
from benchmarks.league.tries import Prompts, Tokens, read_prompts
from learner.aggregations import Totals
from learner.config import LearnerConfig
from learner.losses import LossInputs
from learner.losses.metrics import move_sums
from learner.optim.optimizers import Optimizers, Update
from moments_service.blend import Array
from moments_service.messages.groups import PolicyMove

MOVE_SHARE = 0.25
"""Share of a batch's prompts on which the movement of the policy is measured, where an estimator asks for it."""


class Learner:
    """One update a batch, from the completions of the policy as it is."""

    def __init__(self, policy: Policy, config: LearnerConfig, steps: int, lr: float | None = None) -> None:
        if config.updates_per_batch != 1 or config.kl.coef or config.entropy_coef or config.trainable != ".*":
            raise ValueError(
                "the league trains the whole policy by one update a batch, without a KL or entropy term; "
                "learner.updates_per_batch, kl, entropy_coef and trainable must be the defaults"
            )
        self.policy, self.config = policy, config
        options = config.optimizer if lr is None else config.optimizer.model_copy(update={"lr": lr})
        self.optimizers = Optimizers(policy, dict(policy.named_parameters()), options, config.schedule, steps)

    def learn(self, tokens: Tokens, read: Prompts, said: Completions, advantages: Array) -> Update:
        """One optimiser step. tokens: of the B prompts.    read: the same as read for sampling.    advantages: [B, G].

        Where `read` carries a gradient it is not read again, since the policy that sampled is the one that is trained; where it does
        not, only those prompts are whose completions teach anything.
        """
        weights = token_weights(self.config, said.mask)
        rows = torch.arange(len(tokens))
        if not read.start.requires_grad:
            rows = torch.from_numpy(np.flatnonzero((advantages != 0).any(axis=1)))
            weights, said = weights[said.mask.nonzero(as_tuple=True)[0].unsqueeze(1).eq(rows).any(1)], said.of(rows)
            read = read_prompts(self.policy, [tokens[row] for row in rows.tolist()]) if len(rows) else read
        if len(rows):
            logprobs = token_logprobs(self.policy, read, said.tokens, said.mask)
            self._loss(logprobs, said, advantages[rows.numpy()], weights).backward()
        else:
            for parameter in self.policy.parameters():
                parameter.grad = torch.zeros_like(parameter)
        return self.optimizers.step()

    @torch.no_grad()
    def move(self, prompts: Tokens, said: Completions, generator: torch.Generator) -> PolicyMove:
        """How far `learn` moved the policy, on a random share of the completions."""
        count = len(prompts)
        rows = torch.randperm(count, generator=generator)[: max(1, round(MOVE_SHARE * count))]
        mask = said.mask[rows]
        read = read_prompts(self.policy, [prompts[row] for row in rows.tolist()])
        new = token_logprobs(self.policy, read, said.tokens[rows], mask)
        kl, log_ratio, tokens = move_sums(
            said.logprobs[rows][mask], new, torch.ones_like(new, dtype=torch.bool)
        ).tolist()
        return PolicyMove(kl=kl / tokens, log_ratio=log_ratio / tokens)

    def _loss(
        self, logprobs: torch.Tensor, said: Completions, advantages: Array, weights: torch.Tensor
    ) -> torch.Tensor:
        mask = said.mask
        group, member, _ = mask.nonzero(as_tuple=True)
        groups, size, _ = mask.shape
        inputs = LossInputs(
            logprobs=logprobs,
            entropy=torch.zeros_like(logprobs),
            old=logprobs.detach(),
            reference=None,
            rollout=said.logprobs[mask],
            advantages=torch.from_numpy(advantages.astype(np.float32))[group, member],
            mask=torch.ones_like(logprobs, dtype=torch.bool),
            lag=torch.zeros_like(group),
            sample=group * size + member,
            group=group,
            samples=groups * size,
            groups=groups,
        )
        losses = self.config.correction(inputs)[0] * self.config.loss(inputs)[0]
        return (weights * losses).sum()


def token_weights(config: LearnerConfig, mask: torch.Tensor) -> torch.Tensor:
    """[N] weight of each token in the loss of the batch, by the product's aggregation. mask: [B, G, C]."""
    group, member, _ = mask.nonzero(as_tuple=True)
    groups, size, _ = mask.shape
    totals = Totals(groups=groups, samples=groups * size, tokens=len(group))
    weights = config.aggregation((group * size + member).numpy(), group.numpy(), totals)
    return torch.from_numpy(weights.astype(np.float32))
