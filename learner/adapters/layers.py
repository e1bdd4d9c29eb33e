"""An adapter in a model: put in by peft before the model is sharded, drawn from a seed after, merged for whoever samples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor, Replicate

from actors.engines.adapters import linear_layers, named_pair, pair_names
from learner.adapters.options import LowRank
from learner.patterns import matching
from moments_service.seeding import derive_seed

BASE_LAYER = ".base_layer"
"""What peft puts between a layer's name and those of its own parameters."""


class Adapter:
    """The low-rank pairs of a model's linear layers."""

    def __init__(self, model: nn.Module, options: LowRank, seed: int) -> None:
        """model: changed in place; may be on `meta`, where the adapter is then too. Raises ValueError where `targets` matches no layer.

        seed: of the starting values, which are the same for every number of ranks.
        """
        from peft import inject_adapter_in_model  # late: an import of a second that most runs have no use for

        self.options, self.seed = options, seed
        self.experts = options.experts()
        linear = linear_layers(model)
        self.targets = matching(options.targets, linear, "learner.adapter.targets", "linear layer")
        narrow = next((name for name in self.targets if linear[name].in_features < options.rank), None)
        if options.orthogonal and narrow is not None:
            raise ValueError(
                f"learner.adapter.rank: {options.rank} rows of {narrow} with {linear[narrow].in_features} inputs cannot be "
                "orthogonal; lower it"
            )
        for expert in self.experts:
            config = peft_config(self.targets, expert.rank, expert.scale)
            inject_adapter_in_model(config, model, adapter_name=expert.name, low_cpu_mem_usage=True)
            del model.peft_config  # or peft warns of one adapter too many, for every expert
        modules = dict(model.named_modules())
        self.layers: dict[str, Any] = {name: modules[name] for name in self.targets}
        for layer in self.layers.values():
            layer.set_adapter([expert.name for expert in self.experts])

    def parameters(self) -> dict[str, nn.Parameter]:
        """All of them, as they are registered now, by their names in the model."""
        return {
            f"{name}.{part}.{expert.name}.weight": getattr(layer, part)[expert.name].weight
            for name, layer in self.layers.items()
            for expert in self.experts
            for part in ("lora_A", "lora_B")
        }

    def start_of(self, name: str) -> torch.Tensor:
        """Whole starting value, float32, of the parameter of that name."""
        layer, part, expert, _ = name.rsplit(".", 3)
        shape = getattr(self.layers[layer], part)[expert].weight.shape
        if part == "lora_B":
            return torch.zeros(shape)
        if self.options.orthogonal:
            place = [each.name for each in self.experts].index(expert)
            return self._orthogonal_rows(layer, shape[1]).split([each.rank for each in self.experts])[place]
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "adapter", name))
        # As peft draws it: uniform within 1 / sqrt(in).
        return torch.empty(shape).uniform_(-(shape[1] ** -0.5), shape[1] ** -0.5, generator=generator)

    def _orthogonal_rows(self, layer: str, width: int) -> torch.Tensor:
        """[rank, width] of orthogonal rows as long as uniform ones are on average."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "adapter", layer))
        drawn = torch.randn(width, self.options.rank, generator=generator, dtype=torch.float64)
        return (torch.linalg.qr(drawn).Q.T * 3**-0.5).float()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The layers compute as if they had no adapter."""
        # Not peft's own switch, which also freezes the parameters.
        for layer in self.layers.values():
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer._disable_adapters = False

    @torch.no_grad()
    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """A whole weight with what the adapter adds to it; itself where it adds nothing. Collective.

        name: of the weight, as it is without an adapter.
        """
        layer = name.removesuffix(".weight")
        if layer not in self.layers or layer == name:
            return weight
        a, b = self._pair(layer)
        return weight + b @ a

    def _pair(self, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole [rank, in] and [out, rank] whose product is added to a layer's weight. Collective."""
        module = self.layers[layer]
        a = [_whole(module.lora_A[expert.name].weight) for expert in self.experts]
        b = [_whole(module.lora_B[expert.name].weight) * expert.scale for expert in self.experts]
        return torch.cat(a), torch.cat(b, dim=1)

    @torch.no_grad()
    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole pairs of all layers, by the names that an adapter travels under, every scale in B. Collective."""
        for layer in self.layers:
            yield from named_pair(layer, self._pair(layer))

    def shapes(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Of `tensors`. Not collective."""
        for layer, module in self.layers.items():
            a, b = pair_names(layer)
            yield a, (self.options.rank, module.in_features)
            yield b, (module.out_features, self.options.rank)

    def add_penalty(self) -> torch.Tensor | None:
        """Add the gradient of `options.penalty` * overlap to the parameters and return that product, on their device. Collective.

        None where the options have no penalty.

        Overlap: sum over layers and pairs of experts of |A_i A_j^T|^2.
        """
        if not self.options.penalty:
            return None
        total = torch.zeros((), dtype=torch.float64)
        for layer in self.layers.values():
            parts = [_replicated(layer.lora_A[expert.name].weight) for expert in self.experts]
            pairs = [(left, right) for place, left in enumerate(parts) for right in parts[:place]]
            penalty = (
                self.options.penalty * torch.stack([(left @ right.T).square().sum() for left, right in pairs]).sum()
            )
            penalty.backward()
            total = total.to(penalty.device) + penalty.detach().double()
        return total

    @torch.no_grad()
    def export(self, directory: str | Path, policy_path: str, dtype: torch.dtype, write: bool) -> None:
        """Write a directory that peft and vLLM load as one LoRA adapter of the whole rank. Collective.

        write: on one rank only. Scales of experts are in its B.
        """
        tensors = {}
        for layer in self.layers:
            a, b = self._pair(layer)
            if write:
                tensors[f"base_model.model.{layer}.lora_A.weight"] = a.to("cpu", dtype).contiguous()
                tensors[f"base_model.model.{layer}.lora_B.weight"] = (
                    (b / self.options.scale).to("cpu", dtype).contiguous()
                )
        if write:
            target = Path(directory)
            target.mkdir(parents=True, exist_ok=True)
            config = peft_config(self.targets, self.options.rank, self.options.scale)
            config.base_model_name_or_path, config.task_type, config.inference_mode = policy_path, "CAUSAL_LM", True
            config.save_pretrained(str(target))
            save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})


def peft_config(targets: Sequence[str], rank: int, scale: float) -> Any:
    """peft's options for an adapter of a rank on layers of those names; what it adds is scaled by `scale`."""
    from peft import LoraConfig

    alpha: Any = scale * rank
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0, bias="none")


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()


def _replicated(parameter: torch.Tensor) -> torch.Tensor:
    """Whole on every rank, each of which computes the same from it; its gradient goes to the shards."""
    return parameter.full_tensor(grad_placements=[Replicate()]) if isinstance(parameter, DTensor) else parameter
