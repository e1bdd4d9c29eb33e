"""What a policy's checkpoint says about itself: its tensors, its end-of-sequence tokens, whether its embeddings are tied."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils import cached_file

from actors.engines.file_names import file_tensors, sent_tensors
from actors.weights.block import verify
from actors.weights.offer import WeightError, WeightOffer

LM_HEAD = "lm_head.weight"

Shapes = Mapping[str, tuple[int, ...]]

_NOBODY_READS = r"rotary_emb\.inv_freq$"
"""Computed from the config, and in files of old models; transformers passes over it."""


class UnfitPolicyError(ValueError):
    """A policy that cannot be trained as it is; says what is wrong with it, and what to do."""


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """shapes: of every tensor by its name in the files.    eos_token_ids: tokens that end a completion, ascending."""

    shapes: Shapes
    eos_token_ids: tuple[int, ...]
    tied: bool


def here(policy: str) -> bool:
    """Whether the files of a policy are on this machine: it is a directory, or a model name that was fetched."""
    if Path(policy).is_dir():
        return True
    files = ("model.safetensors.index.json", "model.safetensors")
    return any(isinstance(try_to_load_from_cache(policy, file), str) for file in files)


def read_config(policy: str) -> Any:
    """The model's config. Raises UnfitPolicyError for a type that is unknown here, also where the policy brings code for it;
    OSError if it cannot be found."""
    found = cached_file(policy, "config.json", _raise_exceptions_for_missing_entries=False)
    if found is None:
        raise OSError(f"policy: {policy} has no config.json")
    try:
        said = json.loads(Path(found).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnfitPolicyError(f"policy: {found} is no JSON ({error})") from None
    try:
        config = AutoConfig.from_pretrained(policy, trust_remote_code=False)
        AutoModelForCausalLM._model_mapping[type(config)]
    except (KeyError, ValueError) as error:
        if "auto_map" in said:
            raise UnfitPolicyError(
                f"policy: {found} asks for code of the model's own (auto_map), which is never run here; take a policy of an "
                "architecture that transformers has"
            ) from None
        reason = "" if isinstance(error, KeyError) else f" ({str(error).strip().splitlines()[0]})"
        raise UnfitPolicyError(
            f"policy: {found} is of model_type {said.get('model_type', 'missing')!r}, which the installed transformers has no "
            f"causal language model for{reason}"
        ) from None
    return config


def meta_model(config: Any) -> Any:
    """The policy without any values: names, shapes and structure."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
        )


def read_policy_files(policy: str) -> PolicyFiles:
    """Read the headers (not the weights) of a checkpoint. policy: directory or hub id with safetensors files.

    Raises UnfitPolicyError where its files hold other tensors than the learner will send, OSError if it cannot be found.
    """
    config = read_config(policy)
    text, model = config.get_text_config(), meta_model(config)
    sent = {name: tuple(tensor.shape) for name, tensor in file_tensors(model, sent_tensors(model))}
    tied = bool(text.tie_word_embeddings)
    held = _shapes(policy)
    passed_over = [_NOBODY_READS, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]
    held = {
        name: shape
        for name, shape in held.items()
        if name in sent or not any(re.search(pattern, name) for pattern in passed_over)
    }
    _refuse_other_tensors(policy, model, held, sent, tied)
    return PolicyFiles(shapes=held, eos_token_ids=_eos_token_ids(policy, text.eos_token_id), tied=tied)


def verify_offer(offer: WeightOffer, files: PolicyFiles) -> None:
    """Raise WeightError unless a fetched offer is undamaged and has every tensor of the policy, and no other.

    Engines reload layer by layer, where a layer with only some of its tensors would be left half new: offers are whole.
    """
    if offer.kind != "full":
        raise WeightError(
            f"weights of policy version {offer.version} are a {offer.kind}; this engine takes whole policies"
        )
    verify(offer)
    if differences := _differences(files.shapes, {entry.name: entry.shape for entry in offer.manifest}, files.tied):
        raise WeightError(f"weights of policy version {offer.version} do not fit the policy: {differences}")


def _refuse_other_tensors(policy: str, model: Any, held: Shapes, sent: Shapes, tied: bool) -> None:
    head = {name for name, tensor in model.state_dict(keep_vars=True).items() if _is_head(model, tensor)}
    heads = {name for name, _ in file_tensors(model, [(name, model.state_dict()[name]) for name in head])}
    prefix = f"{model.base_model_prefix}."
    if any(name.startswith(prefix) for name in sent) and not any(name.startswith(prefix) for name in held):
        raise UnfitPolicyError(
            f"policy: {policy} holds a bare {type(model.base_model).__name__}, whose tensors are not named {prefix}…; load it with "
            "AutoModelForCausalLM.from_pretrained and save that"
        )
    if not tied and (missing := sorted((heads & sent.keys()) - held.keys())):
        raise UnfitPolicyError(
            f"policy: {policy} has no output head ({missing[0]}) in its files, and its config.json does not tie it to the "
            "embeddings (tie_word_embeddings: false), so it would be random; set that to true, or add the head"
        )
    if differences := _differences(sent, held, tied):
        raise UnfitPolicyError(
            f"policy: the tensors in the files of {policy} are not those that a {type(model).__name__} saves: {differences}; load "
            "it with AutoModelForCausalLM.from_pretrained, see that nothing is missing, and save that"
        )


def _is_head(model: Any, tensor: torch.Tensor) -> bool:
    return model.get_output_embeddings() is not None and tensor is model.get_output_embeddings().weight


def _differences(expected_shapes: Shapes, found_shapes: Shapes, tied: bool) -> str:
    """What one set of tensors has otherwise than it should; "" where nothing."""
    expected, found = dict(expected_shapes), dict(found_shapes)
    if tied:
        found.pop(LM_HEAD, None)
        expected.pop(LM_HEAD, None)
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    misshapen = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    if not (missing or unknown or misshapen):
        return ""
    return f"missing {_some(missing)}, unknown {_some(unknown)}, other shape {_some(misshapen)}"


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else "0"


def _shapes(policy: str) -> Shapes:
    index = cached_file(policy, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    files = (
        set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
        if index
        else {"model.safetensors"}
    )
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(files):
        path = cached_file(policy, file, _raise_exceptions_for_missing_entries=False)
        if path is None:
            raise UnfitPolicyError(f"policy: {policy} {_without_weights(policy, file)}")
        try:
            with safe_open(path, framework="numpy") as tensors:
                shapes.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise UnfitPolicyError(f"policy: {path} is damaged or cut short ({error}); fetch it again") from None
    return shapes


def _without_weights(policy: str, file: str) -> str:
    pickled = sorted(path.name for path in Path(policy).glob("*.bin")) if Path(policy).is_dir() else []
    if pickled:
        return (
            f"has its weights as {pickled[0]} only, and nothing is unpickled here; load it with AutoModelForCausalLM and save it, "
            "which writes safetensors"
        )
    return f"has no weights: {file} is not there"


def _eos_token_ids(policy: str, from_config: int | list[int] | None) -> tuple[int, ...]:
    path = cached_file(policy, "generation_config.json", _raise_exceptions_for_missing_entries=False)
    eos = GenerationConfig.from_pretrained(policy).eos_token_id if path else None
    eos = from_config if eos is None else eos
    return tuple(sorted({eos} if isinstance(eos, int) else set(eos or ())))
