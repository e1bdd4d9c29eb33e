"""Every loss in float64 numpy, written from its formula, token by token: no torch, no segments, no broadcasting.

Each takes the log-probs that move, those at which a stop-gradient holds them (`frozen`), the old ones, the advantages, and the
sample that each token belongs to; all [N]. Returns the losses [N], so that differences of it have the gradient of the loss.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray
Oracle = Callable[[Array, Array, Array, Array, Array, Mapping[str, Any]], Array]
LIMIT = 20.0


def limited(value: float) -> float:
    return min(max(value, -LIMIT), LIMIT)


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def clipped_surrogate(ratio: float, advantage: float, options: Mapping[str, Any]) -> float:
    bounded = clip(ratio, 1 - options["clip_low"], 1 + options["clip_high"])
    return -min(ratio * advantage, bounded * advantage)


def ppo_clip(
    x: Array, frozen: Array, old: Array, advantages: Array, sample: Array, options: Mapping[str, Any]
) -> Array:
    losses = []
    for new, before, advantage in zip(x, old, advantages, strict=True):
        loss = clipped_surrogate(math.exp(limited(new - before)), advantage, options)
        if options["dual_clip"] is not None and advantage < 0:
            loss = min(loss, -options["dual_clip"] * advantage)
        losses.append(loss)
    return np.array(losses)


def members(sample: Array, t: int) -> list[int]:
    return [int(i) for i in np.flatnonzero(sample == sample[t])]


def gspo(x: Array, frozen: Array, old: Array, advantages: Array, sample: Array, options: Mapping[str, Any]) -> Array:
    losses = []
    for t, advantage in enumerate(advantages):
        mean = np.mean([limited(frozen[i] - old[i]) for i in members(sample, t)])
        losses.append(clipped_surrogate(math.exp(mean) * math.exp(x[t] - frozen[t]), advantage, options))
    return np.array(losses)


def luspo(x: Array, frozen: Array, old: Array, advantages: Array, sample: Array, options: Mapping[str, Any]) -> Array:
    lengths = np.array([len(members(sample, t)) for t in range(len(x))])
    return lengths * gspo(x, frozen, old, advantages, sample, options)


def signed_clip(difference: float, advantage: float, options: Mapping[str, Any]) -> float:
    sign = np.sign(advantage)
    bounded = clip(difference, -options["clip_low"], options["clip_high"])
    return float(sign * min(sign * difference, sign * bounded))


def gmpo(x: Array, frozen: Array, old: Array, advantages: Array, sample: Array, options: Mapping[str, Any]) -> Array:
    losses = []
    for t, advantage in enumerate(advantages):
        of = members(sample, t)
        held = [signed_clip(limited(frozen[i] - old[i]), advantages[i], options) for i in of]
        moved = signed_clip(limited(x[t] - old[t]), advantage, options) - held[of.index(t)]
        losses.append(-advantage * math.exp(np.mean(held)) * math.exp(moved))
    return np.array(losses)


def cispo(x: Array, frozen: Array, old: Array, advantages: Array, sample: Array, options: Mapping[str, Any]) -> Array:
    weights = [
        clip(math.exp(limited(now - before)), 1 - options["clip_low"], 1 + options["clip_high"])
        for now, before in zip(frozen, old, strict=True)
    ]
    return -np.array(weights) * advantages * x


def dispo(x: Array, frozen: Array, old: Array, advantages: Array, sample: Array, options: Mapping[str, Any]) -> Array:
    weights = []
    for now, before, advantage in zip(frozen, old, advantages, strict=True):
        side = "positive" if advantage > 0 else "negative"
        ratio = math.exp(limited(now - before))
        weights.append(clip(ratio, 1 - options[f"{side}_low"], 1 + options[f"{side}_high"]))
    return -np.array(weights) * advantages * x


def sapo(x: Array, frozen: Array, old: Array, advantages: Array, sample: Array, options: Mapping[str, Any]) -> Array:
    losses = []
    for new, before, advantage in zip(x, old, advantages, strict=True):
        tau = options["temperature_positive"] if advantage > 0 else options["temperature_negative"]
        gate = 4 / tau / (1 + math.exp(-min(tau * (math.exp(limited(new - before)) - 1), 700)))
        losses.append(-gate * advantage)
    return np.array(losses)


def r2vpo(x: Array, frozen: Array, old: Array, advantages: Array, sample: Array, options: Mapping[str, Any]) -> Array:
    ratios = np.array([math.exp(limited(new - before)) for new, before in zip(x, old, strict=True)])
    return -(ratios * advantages - options["penalty"] * (ratios - 1) ** 2)


def vespo(x: Array, frozen: Array, old: Array, advantages: Array, sample: Array, options: Mapping[str, Any]) -> Array:
    weights = []
    for t, advantage in enumerate(advantages):
        total = sum(limited(frozen[i] - old[i]) for i in members(sample, t))
        whole = min(max(math.exp(min(total, LIMIT)), 1e-8), math.exp(LIMIT))
        side = "negative" if advantage < 0 else "positive"
        weights.append(whole ** options[f"power_{side}"] * math.exp(options[f"decay_{side}"] * (1 - whole)))
    return -np.array(weights) * advantages * x


def reinforce(
    x: Array, frozen: Array, old: Array, advantages: Array, sample: Array, options: Mapping[str, Any]
) -> Array:
    return -advantages * x


ORACLES: dict[str, Oracle] = {
    "ppo_clip": ppo_clip,
    "gspo": gspo,
    "cispo": cispo,
    "gmpo": gmpo,
    "sapo": sapo,
    "luspo": luspo,
    "dispo": dispo,
    "r2vpo": r2vpo,
    "vespo": vespo,
    "reinforce": reinforce,
}


def whole_sequence(
    kind: str, x: Array, old: Array, advantages: Array, sample: Array, options: Mapping[str, Any]
) -> float:
    """The objective of a sequence-level loss as its paper writes it, a mean over samples of one number each."""
    losses = []
    for number in np.unique(sample):
        of = np.flatnonzero(sample == number)
        advantage = advantages[of[0]]
        if kind == "gmpo":
            clipped = [signed_clip(x[i] - old[i], advantage, options) for i in of]
            losses.append(-advantage * math.exp(np.mean(clipped)))
        else:
            loss = clipped_surrogate(math.exp(np.mean(x[of] - old[of])), advantage, options)
            losses.append(len(of) * loss if kind == "luspo" else loss)
    return float(np.mean(losses))


def aggregation_weights(kind: str, sample: Array, group: Array, options: Mapping[str, Any]) -> Array:
    """[N] weights of a whole batch's tokens."""
    groups = list(np.unique(group))
    weights = []
    for s, g in zip(sample, group, strict=True):
        length = int((sample == s).sum())
        size = len(np.unique(sample[group == g]))
        weights.append(
            {
                "seq_mean_token_mean": 1 / (length * size * len(groups)),
                "token_mean": 1 / len(sample),
                "seq_mean_token_sum": 1 / (size * len(groups)),
                "seq_mean_token_sum_norm": 1 / (options.get("length", 1) * size * len(groups)),
                "prompt_mean": 1 / (int((group == g).sum()) * len(groups)),
            }[kind]
        )
    return np.array(weights)
