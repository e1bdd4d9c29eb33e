"""The advantage estimators by name."""

from collections.abc import Callable

from moments_service.config import MomentsConfig
from moments_service.estimators.base import Advantages, Estimator
from moments_service.estimators.bv_blend import create_bv_blend
from moments_service.estimators.grpo import grpo

__all__ = ["ESTIMATORS", "Advantages", "Estimator", "create_estimator"]

ESTIMATORS: dict[str, Callable[[MomentsConfig], Estimator]] = {
    "bv_blend": lambda config: create_bv_blend(config.blend),
    "grpo": lambda config: grpo,
}


def create_estimator(config: MomentsConfig) -> Estimator:
    """The estimator that `config` names. Raises KeyError for a name that is not registered."""
    return ESTIMATORS[config.estimator](config)
