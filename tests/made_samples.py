"""Samples that no policy said, for tests of the learner."""

from collections.abc import Sequence

import numpy as np

from actors.rollout.sample import Sample

ScoredSamples = tuple[tuple[Sample, ...], np.ndarray]


def made_sample(
    group_id: str,
    index: int,
    parts: Sequence[tuple[bool, Sequence[int]]],
    rng: np.random.Generator,
    temperature: float = 1.0,
    version: int = 0,
) -> Sample:
    """A sample of parts (trained or not, token ids) with random log-probs."""
    tokens = np.concatenate([np.asarray(ids, dtype=np.int32) for _, ids in parts])
    mask = np.concatenate([np.full(len(ids), trained) for trained, ids in parts]).astype(np.bool_)
    return Sample(
        group_id=group_id,
        index=index,
        token_ids=tokens,
        loss_mask=mask,
        logprobs=np.where(mask, -rng.random(len(tokens)), 0.0).astype(np.float32),
        versions=np.where(mask, version, -1).astype(np.int32),
        temperature=temperature,
    )


def made_group(
    name: str,
    prompt: int,
    lengths: Sequence[int],
    advantages: Sequence[float] | None = None,
    temperature: float = 1.0,
    vocabulary: int = 64,
    seed: int = 0,
) -> ScoredSamples:
    """Single-turn samples with completions of `lengths` tokens after a prompt of `prompt`; NaN leaves one out."""
    rng = np.random.default_rng(sum(name.encode()) + prompt + 1000 * seed)
    start = rng.integers(0, vocabulary, prompt).tolist()
    samples = tuple(
        made_sample(name, i, [(False, start), (True, rng.integers(0, vocabulary, n).tolist())], rng, temperature)
        for i, n in enumerate(lengths)
    )
    drawn = rng.normal(size=len(lengths))
    return samples, drawn if advantages is None else np.array(advantages, dtype=np.float64)


def trained_tokens(sample: Sample) -> list[int]:
    return [int(token) for token in sample.token_ids[sample.loss_mask]]
