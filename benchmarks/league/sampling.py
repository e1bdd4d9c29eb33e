"""Sampling and exact probabilities: what a policy says after its prompts, and how likely it says the right thing."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.league.policy import Policy
from benchmarks.league.tries import Prompts, Tokens, read_prompts
from moments_service.blend import Array

AT_ONCE = 128
"""Prompts whose probabilities are worked out together."""


@dataclass(frozen=True, slots=True)
class Completions:
    """G completions of each of B prompts, up to C tokens. What stands behind the end of one means nothing."""

    tokens: torch.Tensor
    """[B, G, C] int64, the end-of-sequence token included."""
    lengths: torch.Tensor
    """[B, G]"""
    logprobs: torch.Tensor
    """[B, G, C] nats, of the sampler."""
    surprisals: Array
    """[B, G] mean of -log p over a completion's tokens, nats."""
    entropy: float
    """Mean over all tokens, nats."""

    @property
    def mask(self) -> torch.Tensor:
        """[B, G, C] which tokens are there."""
        return torch.arange(self.tokens.shape[2]) < self.lengths[..., None]

    def of(self, rows: torch.Tensor) -> "Completions":
        """Those of some prompts."""
        numbers = rows.numpy()
        return Completions(
            self.tokens[rows],
            self.lengths[rows],
            self.logprobs[rows],
            self.surprisals[numbers],
            self.entropy,
        )

    def and_of(self, other: "Completions") -> "Completions":
        """These, then those of other prompts."""
        longest = max(self.tokens.shape[2], other.tokens.shape[2])

        def joined(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.nn.functional.pad(each, (0, longest - each.shape[2])) for each in (one, two)])

        tokens = [int(each.lengths.sum()) for each in (self, other)]
        return Completions(
            joined(self.tokens, other.tokens),
            torch.cat([self.lengths, other.lengths]),
            joined(self.logprobs, other.logprobs),
            np.concatenate([self.surprisals, other.surprisals]),
            float(np.average([self.entropy, other.entropy], weights=tokens)),
        )


@torch.inference_mode()
def sample(
    policy: Policy, prompts: Prompts, size: int, max_tokens: int, end: int, generator: torch.Generator
) -> Completions:
    """Draw `size` completions of each prompt at temperature 1, until `end` or `max_tokens`."""
    count = len(prompts.start) * size
    tokens = torch.zeros(count, max_tokens, dtype=torch.int64)
    logprobs, entropies = (torch.zeros(count, max_tokens) for _ in range(2))
    lengths = torch.zeros(count, dtype=torch.int64)
    running, past = torch.arange(count), prompts.past
    logits = policy.logits(prompts.start).repeat_interleave(size, 0)
    for place in range(max_tokens):
        normalised = logits.log_softmax(-1)
        probabilities = normalised.exp()
        # The argmax of p / Exp(1) is a draw from p.
        drawn = (probabilities / torch.empty_like(logits).exponential_(generator=generator)).argmax(-1)
        logprob = normalised.gather(-1, drawn[:, None])[:, 0]
        tokens[running, place] = drawn
        logprobs[running, place] = logprob
        entropies[running, place] = -(probabilities * normalised).sum(-1)
        lengths[running] += 1
        goes_on = drawn != end
        running, drawn = running[goes_on], drawn[goes_on]
        if place + 1 == max_tokens or not len(running):
            break
        at = torch.full_like(running, place)
        hidden, past = policy.read(prompts.after(running // size, running % size, at, drawn, size), past)
        logits = policy.logits(hidden)

    def mean(values: torch.Tensor) -> Array:
        return (values.sum(-1) / lengths).double().view(-1, size).numpy()

    longest = int(lengths.max())
    return Completions(
        tokens=tokens[:, :longest].view(-1, size, longest),
        lengths=lengths.view(-1, size),
        logprobs=logprobs[:, :longest].view(-1, size, longest),
        surprisals=mean(-logprobs),
        entropy=float(entropies.sum() / lengths.sum()),
    )


def predictors(policy: Policy, prompts: Prompts, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[N, H] hidden states that predict what was said after the prompts, in the order of the mask.

    tokens: [B, G, C].    mask: [B, G, C] which of them are there, without gaps.
    """
    size = tokens.shape[1]
    of, member, at = mask.nonzero(as_tuple=True)
    # What a token is predicted from: its prompt, or the token before it.
    later = at > 0
    read = torch.cat([later[1:], torch.zeros(1, dtype=torch.bool)])
    if not later.any():
        return prompts.start.index_select(0, of)
    said = prompts.after(of[read], member[read], at[read], tokens[mask][read], size)
    hidden = torch.cat([prompts.start, policy.read(said, prompts.past)[0]])
    sources = of.clone()
    sources[later] = len(prompts.start) + torch.arange(int(later.sum()))
    return hidden.index_select(0, sources)


def token_logprobs(policy: Policy, prompts: Prompts, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[N] log-probs of what was said after the prompts, in the order of the mask. Arguments as of `predictors`."""
    logits = policy.logits(predictors(policy, prompts, tokens, mask))
    return logits.log_softmax(-1).gather(-1, tokens[mask][:, None])[:, 0]


@torch.inference_mode()
def answer_probabilities(policy: Policy, prompts: Prompts, answers: Tokens) -> npt.NDArray[np.float64]:
    """[B]: the probability that the policy says exactly this. answers: with their end-of-sequence token."""
    lengths = torch.tensor([len(answer) for answer in answers])
    tokens = torch.zeros(len(answers), 1, int(lengths.max()), dtype=torch.int64)
    mask = torch.arange(tokens.shape[2]) < lengths[:, None, None]
    tokens[mask] = torch.from_numpy(np.concatenate(answers))
    logprobs = token_logprobs(policy, prompts, tokens, mask).double()
    of = mask.nonzero(as_tuple=True)[0]
    return torch.zeros(len(answers), dtype=torch.float64).index_add_(0, of, logprobs).exp().numpy()


@torch.inference_mode()
def success_probabilities(policy: Policy, prompts: Tokens, answers: Tokens) -> npt.NDArray[np.float64]:
    """[N]: `answer_probabilities` of any number of prompts, those that begin alike together."""
    order = sorted(range(len(prompts)), key=lambda row: prompts[row].tolist())
    found = np.empty(len(prompts))
    for first in range(0, len(order), AT_ONCE):
        rows = order[first : first + AT_ONCE]
        read = read_prompts(policy, [prompts[row] for row in rows])
        found[rows] = answer_probabilities(policy, read, [answers[row] for row in rows])
    return found


def pass_at(probabilities: npt.NDArray[np.float64], k: int) -> float:
    """Expected share of prompts that k independent completions solve at least once: mean of 1 - (1 - p)^k."""
    return float((1.0 - (1.0 - probabilities) ** k).mean())
