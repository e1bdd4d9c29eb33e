"""From the names that tensors have in memory to those that a policy's files have: transformers joins and renames some as it loads.

A file knows every expert of a layer by name, the loaded model one tensor for all of them. Files and vLLM speak the former.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, revert_weight_conversion

Named = tuple[str, torch.Tensor]

_LAYER = re.compile(r".*?\.\d+\.")


def file_tensors(model: Any, tensors: Iterable[Named]) -> Iterator[Named]:
    """Tensors by their names in memory -> the same by their names and shapes in files, as `save_pretrained` writes them.

    model: whose tensors they are, on `meta` if need be.    tensors: whole, in the model's order. One layer is held at a time,
    and nothing where the names are the same.
    """
    # As `save_pretrained` does for a model that no file was loaded into: neither old names nor prefixes come back.
    conversions = get_model_conversion_mapping(model, add_legacy=False)
    if all(isinstance(each, PrefixChange) for each in conversions):
        yield from tensors
        return
    for _, layer in groupby(tensors, key=_layer):
        for name, tensor in revert_weight_conversion(model, dict(layer)).items():
            yield name, tensor.contiguous()


def _layer(named: Named) -> str:
    """What tensors must have in common to be converted together: the layer, or outside of layers the name."""
    name, _ = named
    found = _LAYER.match(name)
    return found[0] if found else name


def sent_tensors(model: Any) -> Iterator[Named]:
    """Parameters and persistent buffers by their names in memory, tied ones once, under the first of their names."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor
