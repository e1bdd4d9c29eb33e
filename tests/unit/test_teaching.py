"""Which estimators can teach from groups of which size."""

import pytest

from moments_service.config import MomentsConfig
from moments_service.estimators import ESTIMATORS
from moments_service.estimators.naming import configured
from moments_service.estimators.teaching import can_teach

pytestmark = pytest.mark.unit

NEED_A_SECOND_REWARD = {
    "dr_grpo",
    "rloo",
    "opo",
    "bnpo",
    "maxrl",
    "pass_at_k",
    "lite_ppo",
    "reinforce_pp_baseline",
    "ebpo",
    "qae",
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_teaches_from_eight_completions_and_some_from_one(name: str) -> None:
    config = configured(MomentsConfig(), name)
    assert can_teach(config, 8)
    assert can_teach(config, 1) is (name not in NEED_A_SECOND_REWARD)


@pytest.mark.parametrize("variant", ["paper", "safe", "eb", "precision"])
def test_bv_blend_teaches_from_a_single_completion(variant: str) -> None:
    assert can_teach(configured(MomentsConfig(), f"bv_blend:{variant}"), 1)


def test_pass_at_k_needs_more_completions_than_k() -> None:
    config = configured(MomentsConfig(), "pass_at_k:k=4")
    assert [can_teach(config, size) for size in (2, 4, 5)] == [False, False, True]
