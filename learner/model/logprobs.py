"""Log-probabilities and entropy of chosen tokens. Neither [tokens, vocabulary] nor a float32 copy of the weight ever exists."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from learner.model.logits import LogitTransform
from learner.model.products import outer, product

LOGIT_ELEMENTS = {"cpu": 2**22, "cuda": 2**25}
"""Logits that are in memory at once, unless told otherwise: what a cache holds, and what keeps a GPU busy."""


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    temperatures: torch.Tensor,
    elements: int | None,
    entropy_grad: bool,
    transform: LogitTransform | None = None,
    compiled: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(transform(logits) / temperature) at the targets, and the entropy of that distribution in nats.

    hidden: [N, H].    weight: [V, H], bias: [V] or None, of the output head.    targets: [N] int64.    temperatures: [N].
    elements: logits in memory at once, in chunks over tokens and vocabulary, which the backward pass computes again; None: see
    LOGIT_ELEMENTS.
    entropy_grad: whether the entropy is part of the loss.    compiled: whether what happens to a chunk is one fused kernel.
    Returns ([N], [N]) float32. Products are of the inputs' dtype, accumulated in float32; all that follows is float32.
    """
    elements = elements or LOGIT_ELEMENTS[hidden.device.type]
    grad = torch.is_grad_enabled()
    logprobs, entropy = _ChunkedHead.apply(
        hidden, weight, bias, targets, temperatures, transform, elements, entropy_grad, grad, compiled
    )
    return logprobs, entropy


def chunk_shape(tokens: int, vocabulary: int, elements: int) -> tuple[int, int]:
    """(tokens, vocabulary entries) of a chunk of at most `elements` logits, unless one token has to see one entry.

    As near to a square as they allow: then the products read least for what they compute.
    """
    side = max(1, math.isqrt(elements))
    rows = min(tokens, max(side, elements // max(vocabulary, 1)))
    return max(1, rows), max(1, min(vocabulary, elements // max(rows, 1)))


def _parts(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


@dataclass(frozen=True, slots=True)
class _Head:
    """The logits of one microbatch, a chunk at a time. [N, H] inputs in the dtype of the products, temperatures [N, 1]."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    targets: torch.Tensor
    inverse: torch.Tensor | None
    """[N, 1] of the temperatures; None where the hidden states are divided by them already."""
    transform: LogitTransform | None
    tokens: list[slice]
    vocabulary: list[slice]

    @classmethod
    def of(
        cls,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperatures: torch.Tensor,
        transform: LogitTransform | None,
        elements: int,
    ) -> "_Head":
        rows, columns = chunk_shape(len(targets), len(weight), elements)
        inverse = temperatures[:, None].reciprocal()
        operands = hidden if _mixed(hidden) else hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        # [N, H] is divided rather than [N, V] where that rounds nothing away and nothing happens in between.
        early = transform is None and bias is None and not _mixed(hidden)
        return cls(
            operands * inverse if early else operands,
            weight,
            bias,
            targets,
            None if early else inverse,
            transform,
            list(_parts(len(targets), rows)),
            list(_parts(len(weight), columns)),
        )

    def columns(self, entries: slice) -> torch.Tensor:
        """[v, H] weights of a part of the vocabulary in the dtype of the products."""
        return self.weight[entries].to(self.hidden.dtype)

    def logits(self, rows: slice, entries: slice, columns: torch.Tensor) -> torch.Tensor:
        """[n, v] float32, over the temperature."""
        logits = _product(self.hidden[rows], columns.T)
        if self.bias is not None:
            logits += self.bias[entries]
        if self.transform is not None:
            logits = self.transform(logits)
        return logits if self.inverse is None else logits.mul_(self.inverse[rows])

    def through(self, gradient: torch.Tensor, logits: torch.Tensor | None, rows: slice) -> torch.Tensor:
        """Gradient [n, v] of the logits over the temperature as that of the product, in place."""
        if self.inverse is not None:
            gradient *= self.inverse[rows]
        if self.transform is not None and logits is not None:
            assert self.inverse is not None
            gradient *= self.transform.slope(logits / self.inverse[rows])
        return gradient

    def places(self, rows: slice, entries: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """([n, 1] index of the target within the entries, [n, 1] whether it lies in them)."""
        place = self.targets[rows, None] - entries.start
        inside = (place >= 0) & (place < entries.stop - entries.start)
        return place.clamp(0, entries.stop - entries.start - 1), inside


class _ChunkedHead(torch.autograd.Function):
    """Online softmax over vocabulary chunks; the backward pass makes each chunk again from the saved normaliser."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperatures: torch.Tensor,
        transform: LogitTransform | None,
        elements: int,
        entropy_grad: bool,
        grad: bool,
        compiled: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head = _Head.of(hidden, weight, bias, targets, temperatures, transform, elements)
        fold, _ = _pointwise(compiled)
        shape = (len(targets), 1)
        kind = torch.promote_types(hidden.dtype, torch.float32)
        chosen, total, weighted = (torch.zeros(shape, dtype=kind, device=hidden.device) for _ in range(3))
        largest = torch.full(shape, torch.finfo(kind).min, dtype=kind, device=hidden.device)
        kept = None
        for entries in head.vocabulary:
            columns = head.columns(entries)
            for rows in head.tokens:
                logits = head.logits(rows, entries, columns)
                place, inside = head.places(rows, entries)
                chosen[rows] = torch.where(inside, logits.gather(1, place), chosen[rows])
                if grad and len(head.tokens) == len(head.vocabulary) == 1:
                    kept = logits
                largest[rows], total[rows], weighted[rows] = fold(
                    logits, largest[rows], total[rows], weighted[rows], kept is None
                )
        spread = total.log()
        normaliser, entropy = largest + spread, spread - weighted / total
        ctx.save_for_backward(hidden, weight, bias, targets, temperatures, normaliser, entropy, kept)
        ctx.options = (transform, elements, entropy_grad, compiled)
        logprobs, entropies = chosen[:, 0] - normaliser[:, 0], entropy[:, 0].clone()
        if not entropy_grad:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: torch.Tensor, grad_entropy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, temperatures, normaliser, entropy, kept = ctx.saved_tensors
        transform, elements, entropy_grad, compiled = ctx.options
        head = _Head.of(hidden, weight, bias, targets, temperatures, transform, elements)
        _, slope = _pointwise(compiled)
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        kind = normaliser.dtype
        to_hidden = torch.zeros(hidden.shape, dtype=kind, device=hidden.device) if want_hidden else None
        to_weight = torch.empty_like(weight) if want_weight else None
        to_bias = torch.empty_like(bias) if want_bias else None
        for entries in head.vocabulary:
            columns = head.columns(entries)
            # Over all tokens in float32, then once into the gradient's dtype.
            weight_sum = torch.zeros(columns.shape, dtype=kind, device=hidden.device) if want_weight else None
            bias_sum = torch.zeros(len(columns), dtype=kind, device=hidden.device) if want_bias else None
            for rows in head.tokens:
                logits = head.logits(rows, entries, columns) if kept is None else kept
                place, inside = head.places(rows, entries)
                upstream = grad_logprobs[rows, None].to(kind)
                of_entropy = grad_entropy[rows, None].to(kind) if entropy_grad else None
                gradient = slope(logits, normaliser[rows], entropy[rows], upstream, of_entropy)
                gradient.scatter_add_(1, place, upstream * inside)
                gradient = head.through(gradient, logits if transform is not None else None, rows)
                if bias_sum is not None:
                    bias_sum += gradient.sum(dim=0)
                gradient = gradient.to(head.hidden.dtype)
                if to_hidden is not None:
                    to_hidden[rows] += _product(gradient, columns)
                if weight_sum is not None:
                    weight_sum += _outer(gradient, head.hidden[rows])
            if to_weight is not None and weight_sum is not None:
                to_weight[entries] = weight_sum
            if to_bias is not None and bias_sum is not None:
                to_bias[entries] = bias_sum
        if to_hidden is not None:
            if head.inverse is None:
                to_hidden /= temperatures[:, None]
            to_hidden = to_hidden.to(hidden.dtype)
        return to_hidden, to_weight, to_bias, *[None] * 7


def _fold(
    logits: torch.Tensor, largest: torch.Tensor, total: torch.Tensor, weighted: torch.Tensor, overwrite: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take a chunk into the running largest logit m, sum of exp(l - m) and sum of exp(l - m) (l - m). [n, v], the others [n, 1]."""
    most = torch.maximum(largest, logits.amax(dim=1, keepdim=True))
    shifted = logits.sub_(most) if overwrite else logits - most
    powers = shifted.exp()
    down = largest - most
    scale = down.exp()
    return (
        most,
        total * scale + powers.sum(dim=1, keepdim=True),
        (weighted + total * down) * scale + shifted.mul_(powers).sum(dim=1, keepdim=True),
    )


def _slope(
    logits: torch.Tensor,
    normaliser: torch.Tensor,
    entropy: torch.Tensor,
    upstream: torch.Tensor,
    of_entropy: torch.Tensor | None,
) -> torch.Tensor:
    """[n, v] gradient of the logits but for the target's own one: -p (upstream + of_entropy (log p + entropy))."""
    logs = logits - normaliser
    if of_entropy is None:
        return logs.exp_().mul_(-upstream)
    powers = logs.exp()
    return logs.add_(entropy).mul_(of_entropy).add_(upstream).neg_().mul_(powers)


_compiled: dict[str, Callable[..., Any]] = {}


def _pointwise(compiled: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`_fold` and `_slope`, compiled once a process where that is asked for."""
    if not compiled:
        return _fold, _slope
    if not _compiled:
        _compiled.update({each.__name__: torch.compile(each, dynamic=True) for each in (_fold, _slope)})
    return _compiled["_fold"], _compiled["_slope"]


def _mixed(tensor: torch.Tensor) -> bool:
    """Whether products take this dtype as it is and accumulate in float32; a CPU cannot return such sums unrounded."""
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.mm(left, right, out_dtype=torch.float32) if _mixed(left) else product(left, right)


def _outer(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.mm(left.T, right, out_dtype=torch.float32) if _mixed(left) else outer(left, right)
