"""How a step of the output head would move the log-probs of sampled tokens: what curvature masks are made of."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from learner.model.logits import LogitTransform
from learner.model.logprobs import LOGIT_ELEMENTS
from learner.optim.optimizers import Optimizers


@dataclass(slots=True)
class HeadMove:
    """Looks at the hidden states of each microbatch that passes the head, for a step that the head's weight may take."""

    step: torch.Tensor
    """[V, H] float32, what would be added to the head's weight."""
    elements: int | None
    """Logits that exist at once; None: see LOGIT_ELEMENTS."""
    found: torch.Tensor | None = None
    """[2, N] of the last microbatch, see `head_move`."""

    def look(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperatures: torch.Tensor,
        transform: LogitTransform | None,
    ) -> None:
        """Keep what a microbatch would be moved by; arguments as of `token_logprobs`."""
        elements = self.elements or LOGIT_ELEMENTS[hidden.device.type]
        self.found = head_move(hidden, weight, bias, self.step, targets, temperatures, elements, transform)


def trained_head(model: nn.Module, optimizers: Optimizers) -> nn.Parameter:
    """The head's weight (of a tied policy its embedding), sharded or not. Raises ValueError where Adam does not train it."""
    weight: nn.Parameter = model.get_output_embeddings().weight  # type: ignore[operator]
    if optimizers.adam_group(weight) is None:
        raise ValueError(
            "learner.masks: capo needs the output head's own weight to be trained by AdamW; let learner.trainable match it, "
            "without an adapter, or leave capo out"
        )
    return weight


@torch.no_grad()
def head_move(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    step: torch.Tensor,
    targets: torch.Tensor,
    temperatures: torch.Tensor,
    elements: int,
    transform: LogitTransform | None = None,
) -> torch.Tensor:
    """[2, N] float32: first-order change of log pi(target) under weight + step, and the variance under pi of that of the logits.

    With u = step @ hidden over the temperature: u[target] - E_pi[u], and Var_pi[u]. The second-order change of log pi(target) is
    the first minus half of the second.    hidden: [N, H].    weight, step: [V, H].    bias: [V] or None.    elements: logits
    that exist at once, in chunks over tokens; two such chunks, in float32.
    """
    rows = max(1, elements // len(weight))
    head, change = weight.detach().float(), step.float()
    parts = []
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        states, inverse = hidden[part].detach().float(), temperatures[part, None].reciprocal()
        logits = F.linear(states, head, None if bias is None else bias.float())
        moved = F.linear(states, change) * inverse
        if transform is not None:
            logits = transform(logits)
            moved = moved * transform.slope(logits)
        chances = (logits * inverse).softmax(dim=-1)
        mean = (chances * moved).sum(dim=-1, keepdim=True)
        first = moved.gather(1, targets[part, None]) - mean
        parts.append(torch.cat([first, (chances * (moved - mean).square()).sum(dim=-1, keepdim=True)], dim=1))
    return torch.cat(parts).T
