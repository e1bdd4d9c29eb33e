"""What a batch is made of: advantages from the state before it, and what looks broken in it."""

import logging

from moments_service.config import MomentsConfig
from moments_service.estimators.grpo import grpo
from moments_service.health import error_share, exploded, many_errors
from moments_service.held import Groups, HeldGroups, committed_rewards
from moments_service.messages.batch import Batch
from moments_service.messages.table import GroupTable
from moments_service.signal import part_metrics, reward_metrics, signal_metrics
from moments_service.state import MomentsState

logger = logging.getLogger(__name__)


def blend(config: MomentsConfig, state: MomentsState, step: int, groups: Groups, closed: HeldGroups) -> Batch:
    """The batch of a step. Changes nothing.

    groups: in feed order.    closed: what the commit of this step will take in beside them; alarms look at both.
    """
    table, clusters = groups.table, groups.clusters
    rewards = state.reward_batch(table, clusters)
    own = state.estimate(rewards)
    metrics = (
        reward_metrics(table)
        | part_metrics(table)
        | signal_metrics(rewards, own, grpo(rewards), config.blend.max_advantage)
    )
    together = committed_rewards(groups, closed.all(), policy_version=-1, move=None)
    metrics["reward/errors"] = share = error_share(together)
    alarms = (*state.alarms(together), *exploded(state.heirs[clusters], table.rewards, own.values))
    if share > (limit := config.health.error_share):
        alarms = (*alarms, many_errors(limit, share))
        logger.warning("%.0f%% of the completions have no reward: %s", 100 * share, _error_examples(table, closed))
    return Batch(
        step=step,
        table=table,
        payloads=tuple(groups.payloads),
        clusters=clusters,
        advantages=own.values,
        baseline=own.baseline,
        scale=own.scale,
        weight=own.weight,
        metrics=metrics,
        alarms=alarms,
    )


def _error_examples(table: GroupTable, closed: HeldGroups) -> str:
    every = (*table.errors, *closed.errors())
    errors = {error for errors in every for error in errors or () if error is not None}
    return "; ".join(sorted(errors)[:3])
