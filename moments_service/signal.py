"""How much signal a batch's advantages hold, and what GRPO would have made of the same rewards."""

import math
import re
from collections import defaultdict

import numpy as np
import numpy.typing as npt

from moments_service.blend import Array
from moments_service.effective_signal import effective_signal
from moments_service.estimators.base import Advantages, RewardBatch
from moments_service.messages.groups import FULL_REWARD
from moments_service.messages.table import GroupTable


def signal_metrics(
    batch: RewardBatch, own: Advantages, counterfactual: Advantages, max_advantage: float
) -> dict[str, float]:
    """What the run's estimator made of a batch, and what GRPO would have made of the same rewards.

    `effective_signal/own`, `effective_signal/grpo`: share of a perfect baseline's signal to noise, as `effective_signal` estimates
    it under either; a batch scatters, averages over steps tell.    `reward/non_uniform`: share of groups whose rewards differ.
    `signal/own`, `signal/grpo`: share of groups with any advantage that is not 0, however well it is directed.
    `signal/rescued`: share of those that have one under the run's estimator alone, `signal/rescued_groups` their number.    `advantage/mean_abs`,
    `advantage/mean_abs_grpo`: mean |A| over the completions that have a reward, under either.    `advantage/max_abs`: the largest.
    `advantage/clipped`: share of advantages at the clip.    `advantage/history_weight`: mean trust in history.
    """
    own_signal, grpo_signal = own.carries_signal(), counterfactual.carries_signal()
    rescued = own_signal & ~grpo_signal
    values = own.values[~np.isnan(own.values)]
    magnitudes = np.abs(values)
    return {
        "effective_signal/own": effective_signal(own.without_cluster_scale(), batch.rewards, batch.history, own.prior),
        "effective_signal/grpo": effective_signal(counterfactual.values, batch.rewards, batch.history, own.prior),
        "signal/own": float(own_signal.mean()),
        "signal/grpo": float(grpo_signal.mean()),
        "signal/rescued": float(rescued.mean()),
        "signal/rescued_groups": float(rescued.sum()),
        "advantage/mean": float(values.mean()),
        "advantage/mean_abs": float(magnitudes.mean()),
        "advantage/max_abs": float(magnitudes.max()),
        "advantage/mean_abs_grpo": float(np.nanmean(np.abs(counterfactual.values))),
        "advantage/clipped": float((magnitudes >= max_advantage).mean()),
        "advantage/history_weight": float(own.weight.mean()),
    }


def reward_metrics(table: GroupTable) -> dict[str, float]:
    """Mean reward, pass@1 overall and per source, lengths and group sizes of a batch."""
    valid = ~np.isnan(table.rewards)
    solved = np.where(valid, table.rewards >= FULL_REWARD, False)
    completions = table.sizes.sum()
    metrics = {
        "reward/mean": float(table.rewards[valid].mean()),
        "reward/pass_at_1": float(solved.sum() / valid.sum()),
        "reward/non_uniform": float(_differ(table.rewards).mean()),
        "completion/length": float(table.lengths.sum() / completions),
        "completion/truncated": float(table.truncated.sum() / completions),
        "group_size/mean": float(table.sizes.mean()),
        "group_size/max": float(table.sizes.max()),
    }
    names = sorted(set(table.sources))
    place = {source: i for i, source in enumerate(names)}
    of_row = np.fromiter(map(place.__getitem__, table.sources), dtype=np.int64, count=len(table))
    solved_by_source = np.bincount(of_row, weights=solved.sum(axis=1))
    valid_by_source = np.bincount(of_row, weights=valid.sum(axis=1))
    shares = (solved_by_source / np.maximum(valid_by_source, 1.0)).tolist()
    return metrics | {f"pass_at_1/{source}": share for source, share in zip(names, shares, strict=True)}


MOST_PARTS = 32
"""Parts of rewards of which a batch has metrics: those that most completions have. Verifiers name them as they like."""
_PART_NAME = re.compile(r"[\w .,:()+-]{1,40}", re.ASCII)


def part_metrics(table: GroupTable) -> dict[str, float]:
    """`reward_part/NAME`: the mean of each named part of the rewards, over the completions that have both."""
    found: dict[str, list[float]] = defaultdict(list)
    for rewards, of_group in zip(table.rewards.tolist(), table.parts, strict=True):
        for reward, parts in zip(rewards, of_group or (), strict=False):
            if reward == reward and parts is not None:
                for name, part in parts.items():
                    if math.isfinite(part) and _PART_NAME.fullmatch(name):
                        found[name].append(part)
    names = sorted(sorted(found, key=lambda name: (-len(found[name]), name))[:MOST_PARTS])
    return {f"reward_part/{name}": math.fsum(found[name]) / len(found[name]) for name in names}


def _differ(rewards: Array) -> npt.NDArray[np.bool_]:
    """[M]: whether a group has two rewards that are not equal."""
    lowest = np.where(np.isnan(rewards), np.inf, rewards).min(axis=1)
    highest = np.where(np.isnan(rewards), -np.inf, rewards).max(axis=1)
    return np.asarray(highest > lowest)
