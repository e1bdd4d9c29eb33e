"""The optimisers of a policy: clipping, the guard against gradients that are not finite, steps, and their state by name."""

import math
from collections.abc import Mapping
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

    grad_norm: float
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

    def step(self) -> Update:
        """Clip, step, advance the schedule, drop the gradients.

        Where the gradients' global norm is not finite, only drop them: weights, state and schedule stay. The norm is the same
        on every rank, so all do alike.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        update = Update(value, self.lr, skipped=not math.isfinite(value))
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
