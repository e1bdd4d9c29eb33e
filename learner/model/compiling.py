"""torch.compile of decoder layers, one by one, so that one compiled layer serves all."""

import torch
from torch import nn

from learner.errors import LearnerError


def check_compiler(device: torch.device) -> None:
    """Raise LearnerError where torch.compile has nothing to compile with."""
    if device.type != "cpu":
        return
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise LearnerError(
            "learner.memory.compile: no C++ compiler is here that torch.compile could use on a CPU: install g++ (or name one in CXX), "
            "or set it to false"
        ) from error


def compile_layer(layer: nn.Module) -> None:
    """Compile a layer in place at its first call, for microbatches of any size."""
    layer.compile(dynamic=True)
