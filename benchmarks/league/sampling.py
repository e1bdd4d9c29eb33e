"""Sampling and exact probabilities: what a policy says after its prompts, and how likely it says the right thing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.league.policy import Past, Policy

Tokens = Sequence[npt.NDArray[np.int64]]
"""Token ids of several texts."""
_ROWS = 64
"""Prompts whose probabilities are worked out at once."""


@dataclass(frozen=True, slots=True)
class Completions:
    """G completions of each of B prompts, up to C tokens. What stands behind the end of one means nothing."""

    tokens: torch.Tensor
    """[B, G, C] int64, the end-of-sequence token included."""
    lengths: npt.NDArray[np.int64]
    """[B, G]"""
    logprobs: torch.Tensor
    """[B, G, C] nats, of the sampler."""
    surprisals: npt.NDArray[np.float64]
    """[B, G] mean of -log p over a completion's tokens, nats."""
    score_norms: npt.NDArray[np.float64]
    """[B, G] mean of 1 - 2 p + sum of p^2 over a completion's tokens: the squared norm of the score in logits."""
    entropy: float
    """Mean over all tokens, nats."""


def padded(texts: Tokens, width: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """([B, L] filled up with 0 on the right, [B] lengths)."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    tokens = np.zeros((len(texts), width or int(lengths.max())), dtype=np.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    return torch.from_numpy(tokens), torch.from_numpy(lengths)


def last(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """[B, H]: hidden states at the last token of each prompt."""
    return hidden[torch.arange(len(lengths)), lengths - 1]


@torch.inference_mode()
def sample(
    policy: Policy,
    past: Past,
    start: torch.Tensor,
    group_size: int,
    max_tokens: int,
    end: int,
    generator: torch.Generator,
) -> Completions:
    """Draw G completions of each prompt at temperature 1 until `end` or `max_tokens`. start: [B, H] at each prompt's last token."""
    logits = policy.logits(start)[:, None].expand(-1, group_size, -1)
    running = torch.ones(logits.shape[:2], dtype=torch.bool)
    tokens, logprobs, norms, entropies, masks = [], [], [], [], []
    for place in range(max_tokens):
        normalised = logits.log_softmax(-1)
        probabilities = normalised.exp()
        # argmax of p / Exp(1) is a draw from p.
        noise = torch.empty(logits.shape).exponential_(generator=generator)
        drawn = (probabilities / noise).argmax(-1)
        logprob = normalised.gather(-1, drawn[..., None])[..., 0]
        tokens.append(drawn)
        logprobs.append(logprob)
        norms.append(1.0 - 2.0 * logprob.exp() + probabilities.square().sum(-1))
        entropies.append(-(probabilities * normalised).sum(-1))
        masks.append(running)
        running = running & (drawn != end)
        if place + 1 == max_tokens or not running.any():
            break
        hidden, past = policy.go_on(past, drawn, group_size)
        logits = policy.logits(hidden)
    mask = torch.stack(masks, -1)
    lengths = mask.sum(-1)
    said = torch.stack(logprobs, -1)

    def mean(values: torch.Tensor) -> npt.NDArray[np.float64]:
        return ((values * mask).sum(-1) / lengths).double().numpy()

    return Completions(
        tokens=torch.stack(tokens, -1),
        lengths=lengths.numpy(),
        logprobs=said,
        surprisals=mean(-said),
        score_norms=mean(torch.stack(norms, -1)),
        entropy=float((torch.stack(entropies, -1) * mask).sum() / mask.sum()),
    )


@torch.inference_mode()
def answer_probabilities(policy: Policy, past: Past, start: torch.Tensor, answers: Tokens) -> npt.NDArray[np.float64]:
    """[B]: the probability that the policy says exactly this after each prompt. answers: with their end-of-sequence token."""
    targets, lengths = padded(answers)
    hidden = start[:, None]
    if targets.shape[1] > 1:
        hidden = torch.cat([hidden, policy.go_on(past, targets[:, :-1], 1)[0]], dim=1)
    logprobs = policy.logits(hidden).log_softmax(-1).gather(-1, targets[..., None])[..., 0].double()
    there = torch.arange(targets.shape[1]) < lengths[:, None]
    return (logprobs * there).sum(-1).exp().numpy()


@torch.inference_mode()
def success_probabilities(policy: Policy, prompts: Tokens, answers: Tokens) -> npt.NDArray[np.float64]:
    """[N]: `answer_probabilities` of any number of prompts, alike in length together."""
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    found = np.empty(len(prompts))
    for first in range(0, len(order), _ROWS):
        rows = order[first : first + _ROWS]
        tokens, lengths = padded([prompts[row] for row in rows])
        hidden, past = policy.read(tokens, lengths)
        found[rows] = answer_probabilities(policy, past, last(hidden, lengths), [answers[row] for row in rows])
    return found


def pass_at(probabilities: npt.NDArray[np.float64], k: int) -> float:
    """Expected share of prompts that k independent completions solve at least once: mean of 1 - (1 - p)^k."""
    return float((1.0 - (1.0 - probabilities) ** k).mean())
