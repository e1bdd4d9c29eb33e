"""The rivals of METHODS G against oracles of their own, and what errors leave of a group under every estimator."""

import math

import numpy as np
import pytest
from hypothesis import given, settings

from moments_service.estimators import ESTIMATORS, RewardBatch
from moments_service.estimators.bbg import group_weight
from tests.unit.estimator_oracles import (
    Oracle,
    Rows,
    anything,
    assert_rows,
    batches_of,
    configuration,
    estimated,
    nothing_known,
)
from tests.unit.rival_oracles import bbg, qae, w_reinforce

pytestmark = pytest.mark.unit

some_examples = settings(max_examples=50, deadline=None)

ORACLES: dict[str, Oracle] = {"qae": qae, "w_reinforce": w_reinforce, "bbg": bbg}


@pytest.mark.parametrize("name", ORACLES)
@some_examples
@given(batch=batches_of(anything))
def test_any_batch_equals_the_oracle(name: str, batch: list) -> None:
    rows, lengths = [[r for r, _ in group] for group in batch], [[n for _, n in group] for group in batch]
    assert_rows(estimated(name, rows, lengths), ORACLES[name](rows, lengths))


# --- closed forms -----------------------------------------------------------------------------------------------------
def test_the_quantile_pushes_rare_successes_up_or_rare_failures_down_never_both() -> None:
    for correct in range(1, 10):
        (row,) = estimated("qae", [[1.0] * correct + [0.0] * (10 - correct)])
        up, down = [a for a in row if a is not None and a > 0], [a for a in row if a is not None and a < 0]
        # More than .6 of ten are right: the baseline is 1.
        assert (len(up), len(down)) == ((correct, 0) if correct <= 6 else (0, 10 - correct))
    assert_rows(estimated("qae", [[1.0, 0.0, 0.5]], quantile=1.0), [[0.0, -2.0, -1.0]], rtol=1e-5)


def test_nsr_learns_from_failures_alone() -> None:
    assert_rows(estimated("w_reinforce", [[1.0, 0.0, 1.0], [-1.0]], positive=0.0), [[0.0, -1.0, 0.0], [-1.0]])


def test_the_weights_of_bbg_are_those_of_its_notes() -> None:
    found = [group_weight(8, correct, 16) for correct in range(5)]
    assert [round(weight, 2) for weight in found] == [2.88, 1.0, 0.32, 0.09, 0.02]
    assert round(group_weight(2, 2, 16), 2) == 0.06 and group_weight(2, 0, 16) == pytest.approx(8.5)
    assert [group_weight(8, correct, 1) for correct in range(9)] == [1.0] * 9
    assert group_weight(512, 512, 4096) > 0


# --- groups of which errors left a single reward ----------------------------------------------------------------------
COMPARED_WITH_MORE = {
    "reinforce_pp": "the whole batch",
    "krpo": "the filter's start at 0",
    "ngrpo": "the virtual reward",
    "james_stein": "the other groups",
    "spo": "the prompt's memory",
    "dbb": "the prompt's memory",
    "ebpo": "all groups",
    "w_reinforce": "nothing: each completion is pushed alone",
}
"""Estimators for which a group is not all that a reward is compared with."""


def survivors(name: str, rewards: Rows, size: int) -> np.ndarray:
    table = np.array([[*row, *[math.nan] * (size - len(row))] for row in rewards], dtype=np.float64)
    sizes = np.full(len(rewards), size)
    prompts = tuple(f"prompt {m}" for m in range(len(rewards)))
    batch = RewardBatch(table, np.ones_like(table), prompts, nothing_known(len(rewards)), sizes=sizes)
    return configuration(name).estimator.create()(batch).values


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in COMPARED_WITH_MORE])
def test_the_single_reward_that_errors_left_of_a_group_teaches_nothing(name: str) -> None:
    values = survivors(name, [[1.0], [0.0], [-0.5], [1.0, 0.0, 0.0, 0.0]], size=4)
    assert np.nanmax(np.abs(values[:3])) < 1e-9


def test_a_single_reward_of_a_group_of_one_stands_under_grpo() -> None:
    np.testing.assert_allclose(survivors("grpo", [[0.7]], size=1), [[0.7]], rtol=1e-5)
