"""The advantage estimators by name. A new one is one new file and one line in `AnyEstimator`."""

from typing import get_args

from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, RememberingEstimator, RewardBatch
from moments_service.estimators.bbg import BBG
from moments_service.estimators.bnpo import BNPO
from moments_service.estimators.bv_blend import BlendConfig
from moments_service.estimators.dbb import DBBOptions
from moments_service.estimators.dr_grpo import DrGRPO
from moments_service.estimators.ebpo import EBPOOptions
from moments_service.estimators.grpo import GRPO
from moments_service.estimators.ha_dw import HADWOptions
from moments_service.estimators.hierarchical import HierarchicalOptions
from moments_service.estimators.james_stein import JamesStein
from moments_service.estimators.kae import KAEOptions
from moments_service.estimators.krpo import KRPO
from moments_service.estimators.lite_ppo import LitePPO
from moments_service.estimators.maxrl import MaxRL
from moments_service.estimators.ngrpo import NGRPO
from moments_service.estimators.opo import OPO
from moments_service.estimators.pass_at_k import PassAtK
from moments_service.estimators.qae import QAE
from moments_service.estimators.reinforce_pp import ReinforcePP
from moments_service.estimators.reinforce_pp_baseline import ReinforcePPBaseline
from moments_service.estimators.rl_zvp import RLZVP
from moments_service.estimators.rloo import RLOO
from moments_service.estimators.spo import SPOOptions
from moments_service.estimators.spo_pp import SPOPPOptions
from moments_service.estimators.v05 import V05Options
from moments_service.estimators.w_reinforce import WReinforce

__all__ = [
    "ESTIMATORS",
    "Advantages",
    "AnyEstimator",
    "Estimator",
    "EstimatorOptions",
    "RememberingEstimator",
    "RewardBatch",
]

AnyEstimator = (
    BlendConfig
    | HierarchicalOptions
    | GRPO
    | DrGRPO
    | RLOO
    | ReinforcePP
    | ReinforcePPBaseline
    | LitePPO
    | OPO
    | NGRPO
    | MaxRL
    | PassAtK
    | BNPO
    | KRPO
    | JamesStein
    | EBPOOptions
    | SPOOptions
    | DBBOptions
    | QAE
    | WReinforce
    | BBG
    | KAEOptions
    | V05Options
    | HADWOptions
    | RLZVP
    | SPOPPOptions
)
"""The options of every estimator."""
ESTIMATORS: dict[str, type[EstimatorOptions]] = {
    options.model_fields["kind"].default: options for options in get_args(AnyEstimator)
}
