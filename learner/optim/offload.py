"""Optimiser state in host memory: a step brings it to the GPU a few parameters at a time."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor

ELEMENTS = 2**27
"""Parameters whose state is on the GPU at once: 1 GiB of Adam's two moments."""


def step_offloaded(optimizer: torch.optim.Optimizer, elements: int = ELEMENTS) -> None:
    """One step of an optimiser whose state rests in host memory between steps, with the numbers of a plain `step()`.

    elements: most parameters that are stepped at once, unless a single tensor holds more. An optimiser steps each tensor by
    itself, so that parts give what the whole gives. State is page-locked, so that the copies run beside the arithmetic.
    """
    whole = [group["params"] for group in optimizer.param_groups]
    try:
        for number, part in _parts(whole, elements):
            for at, group in enumerate(optimizer.param_groups):
                group["params"] = part if at == number else []
            for parameter in part:
                _move_state(optimizer.state.get(parameter, {}), parameter.device)
            optimizer.step()
            for parameter in part:
                _move_state(optimizer.state.get(parameter, {}), torch.device("cpu"))
    finally:
        for group, parameters in zip(optimizer.param_groups, whole, strict=True):
            group["params"] = parameters
    if any(parameter.is_cuda for parameters in whole for parameter in parameters):
        torch.cuda.synchronize()  # the host reads the state next, and its copies are not waited for one by one


def _parts(groups: list[list[Any]], elements: int) -> Iterator[tuple[int, list[Any]]]:
    """(number of the group, some of its parameters), in order."""
    for number, parameters in enumerate(groups):
        part: list[Any] = []
        size = 0
        for parameter in parameters:
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            if part and size + local.numel() > elements:
                yield number, part
                part, size = [], 0
            part.append(parameter)
            size += local.numel()
        if part:
            yield number, part


def _move_state(state: dict[str, Any], device: torch.device) -> None:
    """Move what a parameter's state holds; single numbers (the step count) stay where the optimiser made them."""
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or value.numel() <= 1:
            continue
        local = value.to_local() if isinstance(value, DTensor) else value
        if local.device.type == device.type:
            continue
        if device.type == "cpu":
            moved = torch.empty(local.shape, dtype=local.dtype, pin_memory=True).copy_(local, non_blocking=True)
        else:
            moved = local.to(device, non_blocking=True)
        # Not DTensor.from_local, which would put it back on the mesh's device.
        state[key] = DTensor(moved, value._spec, requires_grad=False) if isinstance(value, DTensor) else moved
