"""Whether the learner computes the policy's log-probs as the policy itself does: by its config, and by trying."""

from typing import Any

import numpy as np
import torch

from actors.rollout.sample import Sample
from learner.aggregations import SeqMeanTokenMean
from learner.batching.pack import count, pack
from learner.model.policy import Policy, reshard
from learner.model.recurrence import mixers

_WITHOUT_STATE = {"full_attention", "sliding_attention", "chunked_attention", "attention", "mlp", "moe"}
"""Kinds of layers that attend, or look at single tokens."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
"""Nats. In bfloat16 logits around 20 are a tenth apart, and the model's own head is computed in it."""


def why_padded(model: Any, longest_sample: int | None) -> str | None:
    """Why samples must be padded rows of their own, or None where they can be packed as tries.

    longest_sample: tokens of the longest sample; a window that holds it is full attention. None: what the policy can hold.
    """
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    kinds = set(layers)
    longest = longest_sample or getattr(config, "max_position_embeddings", None) or 0
    others = [kind for kind in layers if kind not in _WITHOUT_STATE]
    along_paths = len(mixers(model))
    if len(others) > along_paths:
        return f"it has layers other than attention ({', '.join(sorted(set(others)))})"
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and "chunked_attention" in kinds and longest > chunk:
        return f"its layers attend within chunks of {chunk} tokens, and samples may have {longest}"
    if not model._supports_attention_backend and not along_paths:
        return "its attention cannot be replaced"
    window = getattr(config, "sliding_window", None)
    windowed = "sliding_attention" in kinds or not kinds
    if window and windowed and longest > window and not model._supports_flash_attn:
        return f"its layers attend within a window of {window} tokens that they do not name, and samples may have {longest}"
    return None


@torch.no_grad()
def check_logprobs(policy: Policy, dtype: str, vocabulary: int, device: torch.device) -> None:
    """Compare log-probs of a short made-up group, packed as in training, with those of the model's own forward. Collective.

    Raises ValueError where they differ, so that nothing is trained on wrong numbers.
    """
    samples = tuple(_sample(index, length, vocabulary) for index, length in enumerate((7, 6)))
    groups = [(samples, np.ones(len(samples)))]
    shared, plain = (
        pack(groups, SeqMeanTokenMean(), count(groups), 0, share, 1024, policy.padded)[0].to(device)
        for share in (policy.share_prompt, False)
    )
    ours, _ = policy(shared)
    theirs, _ = policy(plain, plain=True)
    reshard(policy)
    apart = float((ours - theirs).abs().max())
    if not apart <= TOLERANCE[dtype]:
        name = type(policy.model).__name__
        remedy = (
            " If its samples cannot share tokens, learner.share_prompt: false helps."
            if policy.share_prompt
            else " Its logits go through something that the learner does not know."
        )
        raise ValueError(
            f"the learner's log-probs of a {name} are {apart:.2g} nats off those of the model's own forward, so it cannot be "
            f"trained here.{remedy}"
        )


def _sample(index: int, trained: int, vocabulary: int) -> Sample:
    prompt = 4
    size = prompt + trained
    tokens = np.array([(5 + 7 * i + 11 * index * (i >= prompt)) % vocabulary for i in range(size)], dtype=np.int32)
    mask = np.arange(size) >= prompt
    return Sample(
        group_id="the learner's check",
        index=index,
        token_ids=tokens,
        loss_mask=mask,
        logprobs=np.zeros(size, dtype=np.float32),
        versions=np.where(mask, 0, -1).astype(np.int32),
        temperature=0.8,
    )
