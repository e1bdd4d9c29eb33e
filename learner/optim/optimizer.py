"""AdamW with linear warm-up, cosine decay and gradient clipping."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from learner.config import OptimizerConfig


def lr_share(updates: int, total: int, config: OptimizerConfig) -> float:
    """Share of the peak learning rate after `updates` optimiser steps of `total`.

    Linear from 1 / warmup_steps to 1, then half a cosine down to `final_lr_share`, which it keeps beyond `total`.
    """
    if updates < config.warmup_steps:
        return (updates + 1) / config.warmup_steps
    progress = min(1.0, (updates - config.warmup_steps) / max(1, total - config.warmup_steps))
    return config.final_lr_share + (1.0 - config.final_lr_share) * 0.5 * (1.0 + math.cos(math.pi * progress))


class Optimizer:
    """AdamW over the trained parameters. Its state exists from the start, so a checkpoint always has the same entries."""

    def __init__(self, parameters: Iterable[nn.Parameter], total_updates: int, config: OptimizerConfig) -> None:
        self.parameters = list(parameters)
        self.config = config
        self.adamw = AdamW(
            self.parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        for parameter in self.parameters:
            self.adamw.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self.schedule = LambdaLR(self.adamw, lambda updates: lr_share(updates, total_updates, config))

    @property
    def updates(self) -> int:
        """Optimiser steps taken."""
        return self.schedule.last_epoch

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return float(self.adamw.param_groups[0]["lr"])

    def step(self) -> float:
        """Clip, step, advance the schedule, drop the gradients. Returns the gradients' global norm before clipping.

        Raises FloatingPointError, with weights and state untouched, when the norm is not finite.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"gradient norm {value} at optimiser step {self.updates}: the policy has diverged; go back to a checkpoint "
                "with a lower learner.optimizer.lr"
            )
        self.adamw.step()
        self.schedule.step()
        self.adamw.zero_grad(set_to_none=True)
        return value

    def resume_at(self, updates: int) -> None:
        """Put the schedule where it was after `updates` optimiser steps."""
        lr = self.config.lr * self.schedule.lr_lambdas[0](updates)
        self.schedule.load_state_dict(self.schedule.state_dict() | {"last_epoch": updates, "_last_lr": [lr]})
        for group in self.adamw.param_groups:
            group["lr"] = lr
