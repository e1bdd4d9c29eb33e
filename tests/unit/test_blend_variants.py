"""The variants and confidences of BV-Blend against an oracle of their own, from METHODS A.8."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moments_service.config import BlendConfig
from moments_service.estimators import RewardBatch
from moments_service.moments import History
from tests.unit.estimator_oracles import Row, Rows, assert_rows, each, group_rows, known, mean, padded, ragged

pytestmark = pytest.mark.unit

some_examples = settings(max_examples=50, deadline=None)

history_rows = st.tuples(
    st.floats(-1, 1, width=32),
    st.floats(0, 0.5, width=32),
    st.floats(0.5, 100, width=32),
    st.booleans(),
    st.floats(0, 0.5, width=32),
    st.floats(0, 0.5, width=32),
)


def blend_weight(row: Row, past: tuple, config: BlendConfig) -> float:
    _, variance, mass, seen, within, between = past
    if not seen:
        return 0.0
    rewards = known(row)
    n = len(rewards)
    if config.variant == "eb":
        local, historical = within / max(n, 1), between + within / mass
    elif config.variant == "precision":
        # Half a reward of 1 and half a reward of 0 beside those of the group.
        m = (math.fsum(rewards) + 0.5) / (n + 1)
        smoothed = (math.fsum((r - m) ** 2 for r in rewards) + 0.5 * (1 - m) ** 2 + 0.5 * m**2) / (n + 1)
        local, historical = smoothed / max(n, 1), variance / mass
    else:
        u = math.sqrt(variance / mass) / config.temperature
        return {"exp": math.exp(-u), "rational": 1 / (1 + u), "linear": max(0.0, 1 - u)}[config.confidence]
    return local / (local + historical) if local + historical > 0 else 0.0


@pytest.mark.parametrize(
    "config",
    [
        BlendConfig(variant="eb"),
        BlendConfig(variant="precision", max_advantage=2.0),
        BlendConfig(confidence="rational"),
        BlendConfig(confidence="linear", temperature=0.3),
        BlendConfig(variant="paper", confidence="rational"),
        BlendConfig(variant="paper", confidence="linear"),
    ],
    ids=lambda config: f"{config.variant}-{config.confidence}",
)
@some_examples
@given(rows=group_rows, past=st.lists(history_rows, min_size=4, max_size=4))
def test_the_variants_of_bv_blend_equal_their_oracle(config: BlendConfig, rows: Rows, past: list[tuple]) -> None:
    columns = [np.array(column) for column in zip(*past, strict=True)]
    history = History(*columns)
    batch = RewardBatch(padded(rows), padded([[1] * len(row) for row in rows], 0.0), ("",) * 4, history)
    found = config.create()(batch)
    expected = []
    for row, remembered in zip(rows, past, strict=True):
        w, group_mean = blend_weight(row, remembered, config), mean(known(row))
        local = math.fsum((r - group_mean) ** 2 for r in known(row)) / max(len(known(row)), 1)
        squared = w * remembered[1] + (1 - w) * local
        limit = math.inf if config.variant == "paper" else config.max_advantage
        if config.variant != "paper":
            squared += w * (1 - w) * (remembered[0] - group_mean) ** 2
        b = w * remembered[0] + (1 - w) * group_mean
        scale = math.sqrt(squared) + 1e-8
        expected.append(each(row, lambda i, r, b=b, s=scale, top=limit: min(max((r - b) / s, -top), top)))
    np.testing.assert_allclose(
        found.weight, [blend_weight(row, h, config) for row, h in zip(rows, past, strict=True)], rtol=1e-6, atol=1e-7
    )
    # The oracle leaves Eq. 8's epsilon of 1e-8 beside the mass out; a scale near 0 magnifies that and all rounding.
    assert_rows(ragged(found.values, rows), expected, rtol=1e-4, atol=1e-4)
