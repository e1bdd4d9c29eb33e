"""How many parameters a run trains, by the names and shapes in its policy's files: what gradients and optimiser state are held for."""

import math
import re
from collections.abc import Mapping

from learner.adapters import LowRank
from learner.config import LearnerConfig

_IN_A_LAYER = re.compile(r"\.\d+\.")


def trained_parameters(shapes: Mapping[str, tuple[int, ...]], config: LearnerConfig) -> int:
    """Scalars that are trained. shapes: of every tensor in the policy's files.

    With an adapter an estimate: which matrices of a layer are linear is known only to the model. 0 where nothing matches.
    """
    adapter = config.adapter
    if not isinstance(adapter, LowRank):
        return sum(math.prod(shape) for name, shape in shapes.items() if re.search(config.trainable, name))
    linear = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if _is_linear(name, shape)}
    return sum(adapter.rank * sum(shape) for name, shape in linear.items() if re.search(adapter.targets, name))


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Experts are one tensor in memory, and no linear layer."""
    return len(shape) == 2 and name.endswith(".weight") and bool(_IN_A_LAYER.search(name)) and ".experts." not in name
