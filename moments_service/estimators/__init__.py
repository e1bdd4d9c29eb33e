"""The advantage estimators by name."""

import inspect
from collections.abc import Callable

from moments_service.config import MomentsConfig
from moments_service.estimators.base import Advantages, Estimator, RememberingEstimator, RewardBatch
from moments_service.estimators.bnpo import BNPO
from moments_service.estimators.bv_blend import create_bv_blend
from moments_service.estimators.dbb import DBB
from moments_service.estimators.dr_grpo import dr_grpo
from moments_service.estimators.ebpo import EBPO
from moments_service.estimators.grpo import grpo
from moments_service.estimators.james_stein import james_stein
from moments_service.estimators.krpo import KRPO
from moments_service.estimators.lite_ppo import lite_ppo
from moments_service.estimators.maxrl import maxrl
from moments_service.estimators.ngrpo import NGRPO
from moments_service.estimators.opo import opo
from moments_service.estimators.pass_at_k import PassAtK
from moments_service.estimators.reinforce_pp import reinforce_pp
from moments_service.estimators.reinforce_pp_baseline import reinforce_pp_baseline
from moments_service.estimators.rloo import rloo
from moments_service.estimators.spo import SPO
from moments_service.suggestions import nearest

__all__ = [
    "ESTIMATORS",
    "Advantages",
    "Estimator",
    "RememberingEstimator",
    "RewardBatch",
    "create_estimator",
    "fades_by_move",
]

ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "bv_blend": create_bv_blend,
    "grpo": lambda: grpo,
    "dr_grpo": lambda: dr_grpo,
    "rloo": lambda: rloo,
    "reinforce_pp": lambda: reinforce_pp,
    "reinforce_pp_baseline": lambda: reinforce_pp_baseline,
    "lite_ppo": lambda: lite_ppo,
    "opo": lambda: opo,
    "ngrpo": NGRPO,
    "maxrl": lambda: maxrl,
    "pass_at_k": PassAtK,
    "bnpo": BNPO,
    "krpo": KRPO,
    "james_stein": lambda: james_stein,
    "ebpo": EBPO,
    "spo": SPO,
    "dbb": DBB,
}
"""How each is made: bv_blend from its config, the others from `moments.options` as keyword arguments."""

FADE_BY_MOVE = frozenset({"spo"})
"""Estimators whose own memory fades by how far the policy has moved."""


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


def fades_by_move(config: MomentsConfig) -> bool:
    """Whether anything of the history fades by how far a step moves the policy, so that the learner has to measure it."""
    by_kl = config.blend.kl_half_life is not None and config.blend.variant != "paper"
    return by_kl or config.estimator in FADE_BY_MOVE
