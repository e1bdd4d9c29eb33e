"""Muon's steps: momentum, orthogonalised by Newton-Schulz iterations over whole matrices, whoever holds their shards.

torch.optim.Muon iterates in bfloat16, over shards as over whole matrices: with two ranks a step comes out up to a quarter off.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that takes singular values in (0, 1] to about 1 (.7 to 1.2) in five iterations. Source: K. Jordan's Muon (2024)."""
ITERATIONS = 5
ADAMW_RMS = 0.2
"""Root mean square of AdamW's steps, to which orthogonal ones are scaled. Source: arXiv 2502.16982, section 2.2."""


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """[..., M, N] to the same shape and dtype: U V^T of each matrix's U S V^T, about. A matrix of zeros stays one.

    On a GPU the products are in bfloat16, which the iterations bear; elsewhere in the dtype of `matrices`.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    if x.is_cuda:
        x = x.bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class OrthogonalMomentum(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices and stacks of them, whole or sharded over rows by FSDP2.

    A step is collective where parameters are sharded. Every matrix is whole on one rank only, which alone orthogonalises it.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], momentum: float) -> None:
        """groups: of `params`, `lr` and `weight_decay`."""
        super().__init__(groups, {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """closure: none is called; there because torch's optimisers take one."""
        for group in self.param_groups:
            parameters = [each for each in group["params"] if each.grad is not None]
            nesterov = [self._nesterov(each, group["momentum"]) for each in parameters]
            for parameter, step in zip(parameters, _orthogonalised(nesterov), strict=True):
                scale = ADAMW_RMS * max(parameter.shape[-2:]) ** 0.5
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.add_(step, alpha=-group["lr"] * scale)

    def _nesterov(self, parameter: torch.Tensor, momentum: float) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(parameter.grad, 1.0 - momentum)
        step: torch.Tensor = parameter.grad.lerp(average, momentum)  # type: ignore[union-attr]
        return step


def _orthogonalised(steps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The steps orthogonalised, in their order and sharded as before."""
    found = list(steps)
    sharded = []
    for place, step in enumerate(steps):
        if not isinstance(step, DTensor):
            found[place] = orthogonalise(step)
        elif step.device_mesh.size() == 1:
            found[place] = _as(step, orthogonalise(step.to_local()))
        else:
            sharded.append(place)
    # Those that are whole at a time are about as large, so that no rank waits long for another.
    sharded.sort(key=lambda place: (-steps[place].numel(), place))
    while sharded:
        ranks = steps[sharded[0]].device_mesh.size()  # type: ignore[attr-defined]
        together, sharded = sharded[:ranks], sharded[ranks:]
        for place, step in zip(together, _one_each([steps[place] for place in together]), strict=True):  # type: ignore[misc]
            found[place] = step
    return found


def _one_each(steps: Sequence[DTensor]) -> list[DTensor]:
    """At most one matrix a rank, sharded over rows: rank r gets the r-th whole, orthogonalises it, and sends the shards back."""
    mesh = steps[0].device_mesh
    rank, ranks, process_group = mesh.get_local_rank(), mesh.size(), mesh.get_group()
    held = [step.to_local() for step in steps]
    mine = [local.numel() for local in held] + [0] * (ranks - len(steps))
    whole = steps[rank].shape if rank < len(steps) else torch.Size((0,))
    theirs = [_shard_rows(whole[0], ranks, other) * whole[1:].numel() for other in range(ranks)]
    shards = torch.cat([local.reshape(-1) for local in held])
    gathered = shards.new_empty(whole.numel())
    dist.all_to_all_single(gathered, shards, theirs, mine, group=process_group)
    if rank < len(steps):
        gathered = orthogonalise(gathered.view(whole)).reshape(-1)
    dist.all_to_all_single(shards, gathered, mine, theirs, group=process_group)
    back = shards.split(mine[: len(steps)])
    return [_as(step, part.view(local.shape)) for step, part, local in zip(steps, back, held, strict=True)]


def _shard_rows(rows: int, ranks: int, rank: int) -> int:
    """Rows of a rank's shard: FSDP2 cuts as torch.chunk does."""
    each = -(-rows // ranks)
    return max(0, min(each, rows - rank * each))


def _as(like: DTensor, local: torch.Tensor) -> DTensor:
    if like.placements != (Shard(0),):
        raise TypeError(f"Muon knows parameters that are sharded over rows, not {like.placements}")
    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
