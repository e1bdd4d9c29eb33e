"""Which parameters are stepped alike: by what they are, and by the learning rate that their names are given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from learner.optim.options import GroupConfig
from learner.patterns import matching


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters of one learning rate that are decayed alike, in the model's order."""

    parameters: list[nn.Parameter]
    lr: float
    decays: bool
    """They have two dimensions or more: neither norms nor biases."""
    hidden: bool
    """They are matrices between the embeddings and the head, or stacks of such matrices."""

    def options(self, weight_decay: float) -> dict[str, Any]:
        """As torch's optimisers take a group."""
        decay = weight_decay if self.decays else 0.0
        return {"params": self.parameters, "lr": self.lr, "weight_decay": decay}


def parameter_groups(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], lr: float, rates: Sequence[GroupConfig] = ()
) -> list[ParameterGroup]:
    """Every parameter in one group. parameters: of the model, those that are trained, by name.

    lr: peak learning rate of those that no entry of `rates` matches. Raises ValueError where an entry matches none, or none that an earlier one left.
    """
    rate_of = _rates(list(parameters), lr, rates)
    outer = _outer(model)
    sorted_in: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        matrix = parameter.ndim >= 2
        key = (rate_of[name], matrix, matrix and id(parameter) not in outer)
        sorted_in.setdefault(key, []).append(parameter)
    return [ParameterGroup(members, *key) for key, members in sorted_in.items()]


def _rates(names: list[str], lr: float, groups: Sequence[GroupConfig]) -> dict[str, float]:
    """Peak learning rate by name: of the first entry that matches, else `lr`."""
    rates: dict[str, float] = {}
    for place, group in enumerate(groups):
        key = f"learner.optimizer.groups.{place}.match"
        left = [name for name in matching(group.match, names, key, "trained parameter") if name not in rates]
        if not left:
            raise ValueError(
                f"{key}: {group.match!r} matches only parameters that entries before it have taken; the first that matches "
                "counts, so put it further up"
            )
        rates |= dict.fromkeys(left, group.lr)
    return {name: rates.get(name, lr) for name in names}


def _outer(model: nn.Module) -> set[int]:
    """Ids of weights that are looked up or convolved, and of the head: no matrices that a hidden state goes through."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    kinds = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    modules = [module for module in model.modules() if module is head or isinstance(module, kinds)]
    return {id(parameter) for module in modules for parameter in module.parameters(recurse=False)}
