"""What a batch teaches, and what GRPO would have made of the same rewards."""

import numpy as np

from moments_service.estimators.base import Advantages
from moments_service.messages.groups import FULL_REWARD
from moments_service.messages.table import GroupTable


def signal_metrics(own: Advantages, counterfactual: Advantages, max_advantage: float) -> dict[str, float]:
    """What the run's estimator made of a batch, and what GRPO would have made of the same rewards.

    `signal/own`, `signal/grpo`: share of groups that carry signal under either.    `signal/rescued`: share of groups that
    carry it and that GRPO would have wasted, `signal/rescued_groups` their number.    `advantage/mean_abs`,
    `advantage/mean_abs_grpo`: mean |A| over the completions that have a reward, under either.    `advantage/max_abs`: the largest.
    `advantage/clipped`: share of advantages at the clip.    `advantage/history_weight`: mean trust in history.
    """
    own_signal, grpo_signal = own.carries_signal(), counterfactual.carries_signal()
    rescued = own_signal & ~grpo_signal
    values = own.values[~np.isnan(own.values)]
    magnitudes = np.abs(values)
    return {
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
