"""The advantage estimators by name."""

import inspect
from collections.abc import Callable

from moments_service.config import MomentsConfig
from moments_service.estimators.base import Advantages, Estimator, RememberingEstimator, RewardBatch
from moments_service.estimators.bv_blend import create_bv_blend
from moments_service.estimators.grpo import grpo
from moments_service.suggestions import nearest

__all__ = ["ESTIMATORS", "Advantages", "Estimator", "RememberingEstimator", "RewardBatch", "create_estimator"]

ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "bv_blend": create_bv_blend,
    "grpo": lambda: grpo,
}
"""How each is made: bv_blend from its config, the others from `moments.options` as keyword arguments."""


def create_estimator(config: MomentsConfig) -> Estimator:
    """The estimator that `config` names. Raises ValueError for a name or an option that is not registered."""
    if config.estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {config.estimator!r}{nearest(config.estimator, ESTIMATORS)}")
    create = ESTIMATORS[config.estimator]
    known = [] if config.estimator == "bv_blend" else list(inspect.signature(create).parameters)
    for name in config.options:
        if name not in known:
            raise ValueError(f"options: {config.estimator} has no option {name!r}{nearest(name, known)}")
    return create_bv_blend(config.blend) if config.estimator == "bv_blend" else create(**config.options)
