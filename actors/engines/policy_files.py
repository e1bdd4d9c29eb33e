"""What a policy's checkpoint says about itself: its tensors, its end-of-sequence tokens, whether its embeddings are tied."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from transformers import AutoConfig, GenerationConfig
from transformers.utils import cached_file

from actors.weights.block import verify
from actors.weights.offer import WeightError, WeightOffer

LM_HEAD = "lm_head.weight"

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """shapes: of every tensor by Hugging Face name.    eos_token_ids: tokens that end a completion, ascending."""

    shapes: Shapes
    eos_token_ids: tuple[int, ...]
    tied: bool


def read_policy_files(policy: str) -> PolicyFiles:
    """Read the headers (not the weights) of a checkpoint. policy: directory or hub id with safetensors files.

    Raises OSError if the policy or its safetensors files cannot be found.
    """
    config = AutoConfig.from_pretrained(policy)
    return PolicyFiles(
        shapes=_shapes(policy),
        eos_token_ids=_eos_token_ids(policy, config.get_text_config().eos_token_id),
        tied=bool(config.get_text_config().tie_word_embeddings),
    )


def verify_offer(offer: WeightOffer, files: PolicyFiles) -> None:
    """Raise WeightError unless a fetched offer is undamaged and has every tensor of the policy, and no other.

    Engines reload layer by layer, where a layer with only some of its tensors would be left half new: offers are whole.
    """
    if offer.kind != "full":
        raise WeightError(
            f"weights of policy version {offer.version} are a {offer.kind}; this engine takes whole policies"
        )
    verify(offer)
    found, expected = {entry.name: entry.shape for entry in offer.manifest}, dict(files.shapes)
    if files.tied:
        found.pop(LM_HEAD, None)
        expected.pop(LM_HEAD, None)
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    misshapen = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    if missing or unknown or misshapen:
        raise WeightError(
            f"weights of policy version {offer.version} do not fit the policy: "
            f"missing {_some(missing)}, unknown {_some(unknown)}, other shape {_some(misshapen)}"
        )


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
        with safe_open(cached_file(policy, file), framework="numpy") as tensors:
            shapes.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
    return shapes


def _eos_token_ids(policy: str, from_config: int | list[int] | None) -> tuple[int, ...]:
    path = cached_file(policy, "generation_config.json", _raise_exceptions_for_missing_entries=False)
    eos = GenerationConfig.from_pretrained(policy).eos_token_id if path else None
    eos = from_config if eos is None else eos
    return tuple(sorted({eos} if isinstance(eos, int) else set(eos or ())))
