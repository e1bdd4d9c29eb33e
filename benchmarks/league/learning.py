"""The learner's update without its distribution: the same loss, aggregation, clipping, optimiser and schedule."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.league.policy import Past, Policy
from benchmarks.league.sampling import Completions, Tokens, last, padded
from learner.aggregations import Totals
from learner.config import LearnerConfig
from learner.losses import LossInputs
from learner.losses.metrics import move_sums
from learner.optim.optimizers import Optimizers, Update
from moments_service.blend import Array
from moments_service.messages.groups import PolicyMove

PIECE = 16
"""Prompts that are read, and learned from, at once: alike in length, so that little is padding."""

MOVE_SHARE = 0.25
"""Share of a batch's prompts on which the movement of the policy is measured, where an estimator asks for it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some prompts of a batch, read with a gradient."""

    rows: torch.Tensor
    """Which ones of the batch."""
    past: Past
    start: torch.Tensor
    """[rows, H] hidden state at the last token of each prompt."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """All prompts of a batch: in pieces to learn from, and joined in their order, without a gradient, to sample from."""

    prompts: Tokens
    every: tuple[Piece, ...]
    past: Past
    start: torch.Tensor


class Learner:
    """Consumes each batch twice: `read` before it is sampled from, `learn` once its advantages are known.

    The prompts are read once for both, since the policy that samples is the one that is trained.
    """

    def __init__(self, policy: Policy, config: LearnerConfig, steps: int, lr: float | None = None) -> None:
        if config.updates_per_batch != 1 or config.kl.coef or config.entropy_coef or config.trainable != ".*":
            raise ValueError(
                "the league trains the whole policy by one update a batch, without a KL or entropy term; "
                "learner.updates_per_batch, kl, entropy_coef and trainable must be the defaults"
            )
        self.policy, self.config = policy, config
        options = config.optimizer if lr is None else config.optimizer.model_copy(update={"lr": lr})
        self.optimizers = Optimizers(policy, dict(policy.named_parameters()), options, config.schedule, steps)

    def read(self, prompts: Tokens) -> Pieces:
        """Read the prompts of a batch. prompts: token ids of each."""
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
        every = []
        for first in range(0, len(order), PIECE):
            rows = order[first : first + PIECE]
            tokens, lengths = padded([prompts[row] for row in rows])
            hidden, past = self.policy.read(tokens, lengths)
            every.append(Piece(torch.from_numpy(rows), past, last(hidden, lengths)))
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        return Pieces(
            prompts,
            tuple(every),
            _joined([piece.past for piece in every]).rows(back),
            torch.cat([piece.start.detach() for piece in every])[back],
        )

    def learn(self, pieces: Pieces, said: Completions, advantages: Array) -> Update:
        """One optimiser step. advantages: [B, G]."""
        weights = _token_weights(self.config, said.lengths)
        for piece in pieces.every:
            logprobs, mask = self._logprobs(piece, said)
            self._loss(piece.rows, logprobs, mask, said, advantages, weights).backward()
        return self.optimizers.step()

    @torch.no_grad()
    def move(self, pieces: Pieces, said: Completions, generator: torch.Generator) -> PolicyMove:
        """How far `learn` moved the policy, on a random share of the completions."""
        count = len(pieces.prompts)
        rows = torch.randperm(count, generator=generator)[: max(1, round(MOVE_SHARE * count))]
        tokens, lengths = padded([pieces.prompts[row] for row in rows])
        hidden, past = self.policy.read(tokens, lengths)
        new, mask = self._logprobs(Piece(rows, past, last(hidden, lengths)), said)
        old = said.logprobs[rows, :, : mask.shape[2]][mask]
        kl, log_ratio, tokens_seen = move_sums(old, new, torch.ones_like(new, dtype=torch.bool)).tolist()
        return PolicyMove(kl=kl / tokens_seen, log_ratio=log_ratio / tokens_seen)

    def _logprobs(self, piece: Piece, said: Completions) -> tuple[torch.Tensor, torch.Tensor]:
        """([rows, G, C] log-probs of what was said, [rows, G, C] which of them count), C the longest here."""
        rows = piece.rows
        lengths = torch.from_numpy(said.lengths)[rows]
        longest, size = int(lengths.max()), said.lengths.shape[1]
        tokens = said.tokens[rows, :, :longest]
        hidden = piece.start[:, None].expand(-1, size, -1)[:, None]
        if longest > 1:
            inputs = tokens[..., :-1].transpose(1, 2).flatten(1)
            later = self.policy.go_on(piece.past, inputs, size)[0]
            hidden = torch.cat([hidden, later.unflatten(1, (longest - 1, size))], dim=1)
        mask = torch.arange(longest) < lengths[..., None]
        # Logits of tokens that count only.
        chosen = self.policy.logits(hidden.transpose(1, 2)[mask])
        logprobs = chosen.log_softmax(-1).gather(-1, tokens[mask][:, None])[:, 0]
        return logprobs, mask

    def _loss(
        self,
        rows: torch.Tensor,
        logprobs: torch.Tensor,
        mask: torch.Tensor,
        said: Completions,
        advantages: Array,
        weights: Array,
    ) -> torch.Tensor:
        group, member, _ = torch.nonzero(mask, as_tuple=True)
        size = said.lengths.shape[1]
        of_token = (rows[group], member)
        inputs = LossInputs(
            logprobs=logprobs,
            entropy=torch.zeros_like(logprobs),
            old=logprobs.detach(),
            reference=None,
            rollout=said.logprobs[rows, :, : mask.shape[2]][mask],
            advantages=torch.from_numpy(advantages.astype(np.float32))[of_token],
            mask=torch.ones_like(logprobs, dtype=torch.bool),
            lag=torch.zeros_like(group),
            sample=group * size + member,
            group=group,
            samples=len(rows) * size,
            groups=len(rows),
        )
        losses = self.config.loss(inputs)[0] * self.config.correction(inputs)[0]
        return (torch.from_numpy(weights.astype(np.float32))[of_token] * losses).sum()


def _token_weights(config: LearnerConfig, lengths: npt.NDArray[np.int64]) -> Array:
    """[B, G]: what each token of a completion counts, by the product's aggregation."""
    groups, size = lengths.shape
    samples = np.repeat(np.arange(groups * size), lengths.ravel())
    totals = Totals(groups=groups, samples=groups * size, tokens=len(samples))
    weights = config.aggregation(samples, samples // size, totals)
    first = np.cumsum(lengths.ravel()) - lengths.ravel()
    return weights[first].reshape(groups, size)


def _joined(parts: Sequence[Past]) -> Past:
    """Rows of several, padded to one width, without a gradient."""
    width = max(part.layers[0][0].shape[2] for part in parts)

    def wide(tensor: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(tensor.detach(), (0, 0, 0, width - tensor.shape[2]))

    layers = [
        (
            torch.cat([wide(part.layers[number][0]) for part in parts]),
            torch.cat([wide(part.layers[number][1]) for part in parts]),
        )
        for number in range(len(parts[0].layers))
    ]
    return Past(layers, torch.cat([part.lengths for part in parts]))
