"""An adapter alone as it travels: of each of its linear layers a pair A [rank, in] and B [out, rank], for W + B A.

Every scale is in B, and several experts of a layer are one pair of their ranks' sum.
"""

import re
from collections.abc import Iterator

import torch
from torch import nn

from actors.engines.adapter_plan import AdapterPlan
from actors.engines.policy_files import Shapes, meta_model, read_config
from actors.weights.block import open_tensors, verify
from actors.weights.offer import WeightError, WeightOffer

PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
"""peft's names, which vLLM reads too."""

Pair = tuple[torch.Tensor, torch.Tensor]


def named_pair(layer: str, pair: Pair) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a layer by the names that they travel under."""
    yield from zip(pair_names(layer), pair, strict=True)


def pair_names(layer: str) -> tuple[str, str]:
    """Of its A and its B."""
    return f"{PREFIX}{layer}{A}", f"{PREFIX}{layer}{B}"


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Layers that an adapter may be put on, by name: all linear ones but the output head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear) and each is not head}


def adapted_layers(policy: str, plan: AdapterPlan) -> tuple[str, ...]:
    """The layers of a policy that the adapter will be on. policy: directory or hub id; its weights are not read."""
    layers = linear_layers(meta_model(read_config(policy)))
    return tuple(name for name in layers if re.search(plan.targets, name))


def verify_adapter(offer: WeightOffer, base: Shapes) -> None:
    """Raise WeightError unless a fetched offer is undamaged and whole pairs for layers of the policy loaded at the start.

    base: shapes of the policy's tensors.
    """
    version = offer.version
    if (offer.kind, offer.base_version) != ("adapter", 0):
        raise WeightError(
            f"weights of policy version {version} are a {offer.kind} on version {offer.base_version}; this engine was started for "
            "adapters on version 0"
        )
    verify(offer)
    shapes = {entry.name: entry.shape for entry in offer.manifest}
    layers = {name.removeprefix(PREFIX).removesuffix(A).removesuffix(B) for name in shapes}
    expected = {name for layer in layers for name in pair_names(layer)}
    if not shapes or expected != shapes.keys():
        odd = sorted(expected ^ shapes.keys())
        raise WeightError(f"the adapter of policy version {version} is not whole pairs: {odd[:3] or 'it is empty'}")
    for layer in sorted(layers):
        a, b = (shapes[name] for name in pair_names(layer))
        whole = base.get(f"{layer}.weight")
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != whole:
            raise WeightError(f"the adapter of policy version {version} has {a} and {b} for {layer}, which is {whole}")


def opened_pairs(offer: WeightOffer) -> dict[str, Pair]:
    """The pairs of a verified offer by layer, in place: they may be written over once the offer was taken."""
    tensors = open_tensors(offer.manifest, offer.address)
    layers = [name.removeprefix(PREFIX).removesuffix(A) for name in tensors if name.endswith(A)]
    return {layer: (tensors[a], tensors[b]) for layer in layers for a, b in [pair_names(layer)]}
