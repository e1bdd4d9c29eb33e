"""The policy: a Hugging Face causal language model that returns log-probs of completion tokens, sharded by FSDP2."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM

from learner.batching.microbatch import Microbatch, attention_mask
from learner.config import LearnerConfig
from learner.model.logprobs import LOGPROB_CHUNK, token_logprobs

CHECKPOINT_WRAPPER = "_checkpoint_wrapped_module."
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Config entries of models that change the logits after the head; log-probs here would silently differ."""


class Policy(nn.Module):
    """Log-probs and entropies of the completion tokens of a microbatch. Never in training mode: no dropout."""

    def __init__(self, model: nn.Module, logprob_chunk: int, entropy_grad: bool) -> None:
        super().__init__()
        self.model = model
        self.logprob_chunk = logprob_chunk
        self.entropy_grad = entropy_grad
        self.eval()

    @property
    def decoder(self) -> nn.Module:
        """The model without its head."""
        return self.model.get_decoder()  # type: ignore[operator]

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        return self.decoder.layers  # type: ignore[return-value]

    def forward(self, batch: Microbatch) -> tuple[torch.Tensor, torch.Tensor]:
        """([N] log-probs, [N] entropies) float32 of the microbatch's target tokens."""
        hidden = self.decoder(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=None if batch.segments is None else attention_mask(batch.segments),
            use_cache=False,
        ).last_hidden_state
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        return token_logprobs(
            hidden.flatten(0, 1).index_select(0, batch.sources),
            head.weight,
            getattr(head, "bias", None),
            batch.targets,
            batch.temperatures,
            self.logprob_chunk,
            self.entropy_grad,
        )


def load_policy(path: str | Path, config: LearnerConfig, trainable: str | None = None) -> Policy:
    """The policy in a Hugging Face directory, with float32 master weights on the CPU, not yet sharded.

    trainable: as `LearnerConfig.trainable`; None freezes everything (a reference model). Raises ValueError where the
    architecture or the pattern does not fit, before any memory is spent on it elsewhere.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
    _check_architecture(model.config, config)
    policy = Policy(model, LOGPROB_CHUNK, config.loss.entropy_coef > 0)
    policy.requires_grad_(False)
    if trainable is not None:
        _unfreeze(policy, trainable)
    return policy


def _check_architecture(model_config: object, config: LearnerConfig) -> None:
    for name in LOGIT_TRANSFORMS:
        if getattr(model_config, name, None) is not None:
            raise ValueError(f"the policy's config sets `{name}`, which the learner's log-probs do not apply")
    kinds = set(getattr(model_config, "layer_types", None) or ["full_attention"])
    windowed = getattr(model_config, "layer_types", None) is None and getattr(model_config, "sliding_window", None)
    if config.share_prompt and (kinds != {"full_attention"} or windowed):
        raise ValueError(
            f"the policy has layers without full attention ({', '.join(sorted(kinds))}), which cannot share a prompt "
            "between completions: set learner.share_prompt to false"
        )


def _unfreeze(policy: Policy, pattern: str) -> None:
    # Tied parameters appear under each of their names; a match of any of them trains them.
    names = dict(policy.model.named_parameters(remove_duplicate=False))
    matched = [name for name in names if re.search(pattern, name)]
    if not matched:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
        raise ValueError(f"learner.trainable: {pattern!r} matches no parameter of the policy; names are like {near}")
    for name in matched:
        names[name].requires_grad_(True)


def shard(policy: Policy, config: LearnerConfig, mesh: DeviceMesh) -> Policy:
    """Shard the policy in place over the mesh with FSDP2: every decoder layer, then the rest.

    Gradients are summed over ranks, never averaged: the token weights already normalise over the global batch.
    """
    half = config.dtype == "bfloat16"
    precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    layers = policy.layers
    for i, layer in enumerate(layers):
        if config.activation_checkpointing:
            layers[i] = checkpoint_wrapper(layer)
        fully_shard(layers[i], mesh=mesh, mp_policy=precision, reshard_after_forward=mesh.size() > 1)
    fully_shard(policy, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Gloo has no scaled sum, which a divide factor would otherwise ask for.
            module.set_force_sum_reduction_for_comms(True)
    return policy


def named_tensors(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers under the names that `AutoModelForCausalLM` has for them, tied ones once."""
    seen: set[int] = set()
    for name, tensor in policy.model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name.replace(CHECKPOINT_WRAPPER, ""), tensor


def trainable_parameters(policy: Policy) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by Hugging Face name."""
    named = policy.model.named_parameters()
    return {name.replace(CHECKPOINT_WRAPPER, ""): p for name, p in named if p.requires_grad}
