"""What a batch teaches, and what GRPO would have made of the same rewards."""

from collections import defaultdict

import numpy as np

from moments_service.blend import Array
from moments_service.estimators.base import Advantages
from moments_service.groups import FULL_REWARD, ScoredGroup


def signal_metrics(own: Advantages, counterfactual: Advantages, max_advantage: float) -> dict[str, float]:
    """Share of groups that carry signal under the run's estimator and under GRPO, and how strong the push is.

    `rescued`: share of groups that GRPO would have wasted.    `clipped`: share of advantages at the clip.
    """
    own_signal, grpo_signal = own.carries_signal(), counterfactual.carries_signal()
    magnitudes = np.abs(own.values[~np.isnan(own.values)])
    return {
        "signal/own": float(own_signal.mean()),
        "signal/grpo": float(grpo_signal.mean()),
        "signal/rescued": float((own_signal & ~grpo_signal).mean()),
        "advantage/mean": float(np.nanmean(own.values)),
        "advantage/mean_abs": float(magnitudes.mean()),
        "advantage/clipped": float((magnitudes >= max_advantage).mean()),
        "advantage/history_weight": float(own.weight.mean()),
    }


def reward_metrics(groups: list[ScoredGroup], rewards: Array) -> dict[str, float]:
    """Mean reward, pass@1 overall and per source, lengths and errors of a batch. rewards: [M, G], NaN for none."""
    valid = ~np.isnan(rewards)
    solved = np.where(valid, rewards >= FULL_REWARD, False)
    lengths = [length for group in groups for length in group.lengths]
    metrics = {
        "reward/mean": float(np.nanmean(rewards)),
        "reward/pass_at_1": float(solved.sum() / valid.sum()),
        "completion/length": float(np.mean(lengths)),
        "completion/truncated": float(np.mean([flag for group in groups for flag in group.truncated])),
    }
    by_source: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        by_source[group.source].append(row)
    for source, rows in sorted(by_source.items()):
        metrics[f"pass_at_1/{source}"] = float(solved[rows].sum() / valid[rows].sum())
    return metrics
