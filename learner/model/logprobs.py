"""Log-probabilities and entropy of chosen tokens without ever holding [tokens, vocabulary] whole."""

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from learner.model.logits import LogitTransform

LOGPROB_CHUNK = 2048
"""Completion tokens whose vocabulary logits are in memory at once."""


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    temperatures: torch.Tensor,
    chunk: int,
    entropy_grad: bool,
    transform: LogitTransform | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(transform(logits) / temperature) at the targets, and the entropy of that distribution in nats.

    hidden: [N, H].    weight: [V, H], bias: [V] or None, of the output head.    targets: [N] int64.    temperatures: [N].
    chunk: tokens whose [chunk, V] logits exist at once; backward recomputes them.    entropy_grad: whether the entropy is
    part of the loss. Returns ([N], [N]) float32; everything after the head's inputs is float32.
    """
    # Where nothing happens between the head and the temperature, [N, H] is divided rather than [N, V].
    scaled = hidden.float() if transform else hidden.float() / temperatures[:, None]
    head, offset = weight.float(), None if bias is None else bias.float()
    logprobs, entropies = [], []
    for start in range(0, len(targets), chunk):
        part = slice(start, start + chunk)
        arguments = (scaled[part], head, offset, temperatures[part, None], targets[part], entropy_grad, transform)
        if torch.is_grad_enabled():
            logprob, entropy = checkpoint(_chunk, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            logprob, entropy = _chunk(*arguments)
        logprobs.append(logprob)
        entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk(
    scaled: torch.Tensor,
    head: torch.Tensor,
    offset: torch.Tensor | None,
    temperatures: torch.Tensor,
    targets: torch.Tensor,
    entropy_grad: bool,
    transform: LogitTransform | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = F.linear(scaled, head)
    if transform is not None:
        logits = transform(logits if offset is None else logits + offset) / temperatures
    elif offset is not None:
        logits = logits + offset * (1.0 / temperatures)
    normaliser = torch.logsumexp(logits, dim=-1)
    logprob = logits.gather(1, targets[:, None])[:, 0] - normaliser
    # Last, because recomputation in the backward pass stops after the last tensor it needs.
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        probabilities = torch.exp(logits - normaliser[:, None])
        entropy = normaliser - (probabilities * logits).sum(dim=-1)
    return logprob, entropy
