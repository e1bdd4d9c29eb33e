"""The policy: a Hugging Face causal language model that returns log-probs of sampled tokens, sharded by FSDP2."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from actors.engines.file_names import sent_tensors
from learner.adapters.layers import BASE_LAYER, Adapter
from learner.batching.packed import PackedBatch
from learner.config import LearnerConfig
from learner.model.attention.blocks import TrieBlocks
from learner.model.attention.interface import TRIE_ATTENTION
from learner.model.checkpointing import CHECKPOINT_WRAPPER, checkpointed
from learner.model.compiling import check_compiler, compile_layer
from learner.model.head_move import HeadMove
from learner.model.liger import liger_logprobs, why_not_liger
from learner.model.logits import LogitTransform
from learner.model.logprobs import token_logprobs
from learner.model.products import speed_up
from learner.model.recurrence import Recurrence
from learner.model.rows import padded_rows
from learner.patterns import matching


class Policy(nn.Module):
    """Log-probs and entropies of the predicted tokens of a microbatch. Never in training mode: no dropout."""

    def __init__(
        self, model: nn.Module, share_prompt: bool, entropy_grad: bool, logit_elements: int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.share_prompt = share_prompt
        """Whether samples of a microbatch may share tokens."""
        self.padded = False
        """Whether the decoder takes padded rows of one sample each, not tries."""
        self.entropy_grad = entropy_grad
        self.logit_elements = logit_elements
        self.liger = False
        """Whether Liger's kernel is the output head."""
        self.compiled = False
        """Whether what the head does to a chunk of logits is compiled; its products never are."""
        config: Any = model.config
        self.text_config = config.get_text_config()
        self.transform = LogitTransform.of(config)
        self.recurrence = Recurrence(model)
        self.adapter: Adapter | None = None
        self.head_move: HeadMove | None = None
        """What looks at the hidden states before the head, while somebody wants to know what a step of it would do."""
        self.eval()

    @property
    def decoder(self) -> nn.Module:
        """The model without its head."""
        found: nn.Module = self.model.get_decoder()  # type: ignore[operator]
        # Some (Llama 4) call themselves their decoder: then it is the child that holds the layers.
        return found if found is not self.model else max(self.model.children(), key=_layer_parameters)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order: the largest list of modules, whatever the architecture calls it."""
        layers = _largest_list(self.decoder)
        if layers is None:
            raise ValueError(f"{type(self.model).__name__} holds no list of layers that could be sharded one by one")
        return layers

    def forward(self, batch: PackedBatch, plain: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """([N] log-probs, [N] entropies) float32 of the microbatch's target tokens.

        plain: for the check at the start, through the model's own forward and head, of rows that hold one sample each; the
        entropies are 0 then.
        """
        if plain or self.padded:
            rows = padded_rows(batch)
            arguments: dict[str, Any] = {"input_ids": rows.input_ids, "position_ids": rows.position_ids}
            chosen = rows.places.index_select(0, batch.sources)
        else:
            arguments = {"input_ids": batch.input_ids[None], "position_ids": batch.positions[None]}
            arguments["tries"] = TrieBlocks(batch.segments, batch.positions)
            chosen = batch.sources
        # It stays too: see below.
        self.recurrence.follow(None if plain or self.padded else batch.segments, batch.input_ids.device)
        arguments |= {"attention_mask": None, "use_cache": False}
        if not self.padded:
            # It stays, since a layer that is recomputed in the backward pass reads it again.
            self.text_config._attn_implementation = "eager" if plain else TRIE_ATTENTION
        if plain:
            logits = self.model(**arguments).logits.flatten(0, 1).index_select(0, chosen).float()
            logprobs = torch.log_softmax(logits / batch.temperatures[:, None], dim=-1)
            return logprobs.gather(1, batch.targets[:, None])[:, 0], torch.zeros_like(batch.temperatures)
        hidden = self.decoder(**arguments).last_hidden_state
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        sources = hidden.flatten(0, 1).index_select(0, chosen)
        if self.head_move is not None:
            bias = getattr(head, "bias", None)
            self.head_move.look(sources, head.weight, bias, batch.targets, batch.temperatures, self.transform)
        if self.liger:
            return liger_logprobs(sources, head.weight, batch.targets, batch.temperatures, self.entropy_grad)
        return token_logprobs(
            sources,
            head.weight,
            getattr(head, "bias", None),
            batch.targets,
            batch.temperatures,
            self.logit_elements,
            self.entropy_grad,
            self.transform,
            self.compiled,
        )


def choose_head(policy: Policy, config: LearnerConfig, device: torch.device) -> None:
    """Make Liger's kernel the policy's head, where the configuration wants it. Raises ValueError where it cannot be had."""
    wanted = config.memory.head
    if wanted == "chunked":
        return
    head = policy.model.get_output_embeddings()  # type: ignore[operator]
    reason = why_not_liger(device, getattr(torch, config.dtype), getattr(head, "bias", None), policy.transform)
    if wanted == "liger" and reason is not None:
        raise ValueError(f"learner.memory.head: liger cannot be used: {reason}; auto or chunked can")
    policy.liger = reason is None


def _largest_list(module: nn.Module) -> nn.ModuleList | None:
    lists = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
    return max(lists, key=_parameters, default=None)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _layer_parameters(module: nn.Module) -> int:
    layers = _largest_list(module)
    return 0 if layers is None else _parameters(layers)


def freeze(policy: Policy, trainable: str | None) -> None:
    """Train only parameters whose name the pattern matches, or those of an adapter; None freezes everything (a reference model).

    Raises ValueError where nothing matches.
    """
    policy.requires_grad_(False)
    if policy.adapter is not None:
        for parameter in policy.adapter.parameters().values():
            parameter.requires_grad_(True)
        return
    if trainable is None:
        return
    # Tied parameters appear under each of their names; a match of any of them trains them.
    names = dict(policy.model.named_parameters(remove_duplicate=False))
    for name in matching(trainable, names, "learner.trainable", "parameter"):
        names[name].requires_grad_(True)


def shard(policy: Policy, config: LearnerConfig, mesh: DeviceMesh) -> Policy:
    """Shard the policy in place over the mesh with FSDP2: every decoder layer, then the rest. Its tensors may be on `meta`.

    Gradients are summed over ranks, never averaged: the token weights already normalise over the global batch.
    """
    speed_up(policy)
    half = config.dtype == "bfloat16"
    precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    layers = policy.layers
    if config.memory.compile:
        check_compiler(torch.device(mesh.device_type))
        # On a CPU the products take nearly all of the head's time, and compiling takes a minute.
        policy.compiled = mesh.device_type == "cuda"
    for i, layer in enumerate(layers):
        layers[i] = checkpointed(layer, config.memory.activation_checkpointing)
        if config.memory.compile:
            compile_layer(layers[i])
        fully_shard(layers[i], mesh=mesh, mp_policy=precision, reshard_after_forward=mesh.size() > 1)
    fully_shard(policy, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
    _prefetch([layer for layer in layers if isinstance(layer, FSDPModule)])
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Gloo has no scaled sum, which a divide factor would otherwise ask for.
            module.set_force_sum_reduction_for_comms(True)
    return policy


def _prefetch(layers: Sequence[FSDPModule]) -> None:
    """Gather the next layer while one computes, in either direction, without waiting for the host to ask for it."""
    for before, after in itertools.pairwise(layers):
        before.set_modules_to_forward_prefetch([after])
        after.set_modules_to_backward_prefetch([before])


def reshard(policy: Policy) -> None:
    """Put every parameter back into its shards, which a forward without a backward leaves whole."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def named_tensors(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """The policy's own parameters and persistent buffers under the names that `AutoModelForCausalLM` has for them, tied ones once."""
    # Gathered copies of an adapter's parameters would not be known as its own.
    reshard(policy)
    adapted = {} if policy.adapter is None else policy.adapter.parameters()
    beside = {id(parameter) for parameter in adapted.values()}
    for name, tensor in sent_tensors(policy.model):
        if id(tensor) not in beside:
            yield plain_name(name), tensor


def changing_tensors(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint holds of the policy: all of it, or of a policy with an adapter the adapter alone."""
    return named_tensors(policy) if policy.adapter is None else iter(policy.adapter.parameters().items())


def trainable_parameters(policy: Policy) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by Hugging Face name."""
    return {plain_name(name): p for name, p in policy.model.named_parameters() if p.requires_grad}


def plain_name(name: str) -> str:
    """A parameter's name without what activation checkpointing and adapters put into it."""
    return name.replace(CHECKPOINT_WRAPPER, "").replace(BASE_LAYER, "")
