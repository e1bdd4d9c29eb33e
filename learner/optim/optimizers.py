"""The optimisers of a policy: clipping, the guard against gradients that are not finite, steps, and their state by name."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor

from learner.optim.offload import step_offloaded
from learner.optim.parameter_groups import parameter_groups
from learner.optim.protocol import OptimizerOptions, Schedule


@dataclass(frozen=True, slots=True)
class Update:
    """What became of one update. Where it was skipped, `grad_norm` is not finite."""

    loss: float
    """This rank's part of it."""
    grad_norm: float
    """Over all ranks, before clipping; NaN where the loss of any of them is not finite."""
    lr: float
    skipped: bool


class Optimizers:
    """One or several torch optimisers over the trained parameters of a model, under one schedule."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        options: OptimizerOptions,
        schedule: Schedule,
        total_updates: int,
        offload: bool = False,
    ) -> None:
        """parameters: of the model, those that are trained, by name.    total_updates: what the schedule spans.

        offload: keep the state in host memory between steps.
        """
        self.offload = offload
        self.model = model
        self.parameters = list(parameters.values())
        self.max_grad_norm = options.max_grad_norm
        self.optimizers = options.build(parameter_groups(model, parameters, options.lr, options.groups))
        self.peak = options.lr
        self.peaks = [[float(group["lr"]) for group in each.param_groups] for each in self.optimizers]
        self.schedule = schedule
        self.total_updates = total_updates
        self.updates = 0
        """Optimiser steps taken."""

    @property
    def lr(self) -> float:
        """Learning rate of the next step, of parameters in no group of their own."""
        return self.peak * self.schedule.share(self.updates, self.total_updates)

    def step(self, loss: torch.Tensor | None = None) -> Update:
        """Clip, step, advance the schedule, drop the gradients.

        loss: this rank's part of what was minimised, a scalar; None lets the gradient alone decide. Where the gradients' global norm or any rank's loss is not
        finite, only drop the gradients: weights, state and schedule stay. All ranks do alike, since the norm that one of them
        spoils is spoilt for all. The one place of an update where the host waits for the device.
        """
        loss = torch.zeros((), device=self.parameters[0].device) if loss is None else loss
        norm = clip_gradients(self.parameters, self.max_grad_norm, loss)
        value, part = torch.stack([norm.double(), loss.double()]).tolist()
        update = Update(part, value, self.lr, skipped=not math.isfinite(value))
        if not update.skipped:
            share = self.schedule.share(self.updates, self.total_updates)
            for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * share
                if self.offload:
                    step_offloaded(optimizer)
                else:
                    optimizer.step()
            self.updates += 1
        for parameter in self.parameters:
            parameter.grad = None
        return update

    def adam_group(self, parameter: nn.Parameter) -> tuple[torch.optim.Optimizer, dict[str, Any], float] | None:
        """The optimiser that keeps Adam's moments of a parameter, with its group and the group's peak rate; None where none does."""
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                if {"betas", "eps"} <= group.keys() and any(each is parameter for each in group["params"]):
                    return optimizer, group, peak
        return None

    def planned_step(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """What Adam would add to a parameter next, by its moments of the gradients so far; weight decay is left out.

        Whole on every rank, so collective; None before the first step, or where no optimiser keeps such moments.
        """
        found = self.adam_group(parameter)
        if found is None or not found[0].state.get(parameter):
            return None
        optimizer, group, peak = found
        state, (first, second) = optimizer.state[parameter], group["betas"]
        steps = float(state["step"])
        mean, square = state["exp_avg"] / (1 - first**steps), state["exp_avg_sq"] / (1 - second**steps)
        rate = peak * self.schedule.share(self.updates, self.total_updates)
        step: torch.Tensor = mean / (square.sqrt() + group["eps"]) * -rate
        return step.full_tensor() if isinstance(step, DTensor) else step

    def state(self) -> dict[str, Any]:
        """State by parameter and name, as torch's distributed state dicts have it; empty before the first step.

        The tensors are the optimisers' own; before the first `restore` they are made here.
        """
        state: dict[str, Any] = dict(get_optimizer_state_dict(self.model, self.optimizers)) if self.updates else {}
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave, with other values in it."""
        if state:
            set_optimizer_state_dict(self.model, self.optimizers, state)
        else:
            for optimizer in self.optimizers:
                optimizer.state.clear()


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], most: float, loss: torch.Tensor) -> torch.Tensor:
    """Scale the gradients down together to a norm of at most `most`, as torch's `clip_grad_norm_` does, and return their norm.

    A loss that is not finite on any rank makes the norm NaN on all of them: it travels with the norm, in the same reduction.
    """
    norms = [torch.linalg.vector_norm(each.grad) for each in parameters if each.grad is not None]
    if not norms:
        return torch.where(torch.isfinite(loss), 0.0, torch.nan)
    norms[0] = _spoilt(norms[0], loss)
    total = torch.linalg.vector_norm(torch.stack(norms))
    whole = total.full_tensor() if isinstance(total, DTensor) else total
    nn.utils.clip_grads_with_norm_(parameters, most, whole)
    return whole


def _spoilt(norm: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    """A rank's part of a norm, or NaN where its loss is not finite."""
    part = norm.to_local() if isinstance(norm, DTensor) else norm
    part = torch.where(torch.isfinite(loss), part, torch.nan)
    return (
        DTensor.from_local(part, norm.device_mesh, norm.placements, run_check=False)
        if isinstance(norm, DTensor)
        else part
    )


def state_tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor of a state under `key.parameter`. Raises TypeError for a value that is none, which no file could hold."""
    tensors = {}
    for name, values in state.get("state", {}).items():
        for key, value in values.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(
                    f"the optimiser keeps {key} of {name} as a {type(value).__name__}; only tensors are saved"
                )
            tensors[f"{key}.{name}"] = value
    return tensors
