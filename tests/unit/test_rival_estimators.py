"""The rivals of METHODS G against oracles of their own, and what errors leave of a group under every estimator."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moments_service.estimators import ESTIMATORS, RewardBatch
from moments_service.estimators.bbg import group_weight
from tests.unit.estimator_oracles import (
    Oracle,
    Rows,
    Step,
    anything,
    assert_rows,
    batches_of,
    clip01,
    configuration,
    each,
    estimated,
    group_rows,
    nothing_known,
    padded,
    ragged,
    remembering,
    reward_batch,
    sampled_by,
    steps_strategy,
    visits,
    whitened_by_tokens,
)
from tests.unit.rival_oracles import bbg, ha_dw, kae, qae, rl_zvp, spo_pp_value, v05, w_reinforce

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


# --- estimators that remember -----------------------------------------------------------------------------------------
clusters = st.lists(
    st.tuples(st.floats(-1, 1, width=32), st.floats(0, 0.5, width=32), st.booleans()), min_size=4, max_size=4
)
lag_lists = st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=7, max_size=7)


@some_examples
@given(steps_strategy, group_rows, st.sampled_from([(32.0, 8), (2.0, 2), (0.5, 1)]))
def test_kae_equals_its_oracle(steps: list[Step], rows: Rows, options: tuple[float, int]) -> None:
    bandwidth, remembered = options
    found = remembering("kae", steps, bandwidth=bandwidth, visits=remembered)(reward_batch(rows, prompts="abca"))
    expected = [kae(prompt, row, steps, bandwidth, remembered) for prompt, row in zip("abca", rows, strict=True)]
    assert_rows(ragged(found.values, rows), expected)
    np.testing.assert_array_equal(found.weight, [float(bool(visits(p, steps))) for p in "abca"])


def test_a_prompt_that_was_away_for_long_has_the_mean_of_its_last_visits() -> None:
    elsewhere: list[Step] = [([("b", [0.0])], 0.0)] * 500
    found = remembering("kae", [([("a", [1.0, 0.5])], 0.0), *elsewhere], bandwidth=1.0)(
        reward_batch([[1.0]], prompts="a")
    )
    assert found.baseline[0] == 0.75


@some_examples
@given(steps_strategy, group_rows, clusters)
def test_v05_equals_its_oracle(steps: list[Step], rows: Rows, past: list[tuple[float, float, bool]]) -> None:
    means, within, seen = (np.array(column) for column in zip(*past, strict=True))
    history = replace(nothing_known(4), mean=means, within=within, seen=seen)
    found = remembering("v05", steps)(replace(reward_batch(rows, prompts="abca"), history=history))
    expected = [v05(prompt, row, steps, known) for prompt, row, known in zip("abca", rows, past, strict=True)]
    np.testing.assert_allclose(found.weight, [trust for _, trust in expected], rtol=1e-6, atol=1e-6)
    assert_rows(ragged(found.values, rows), [row for row, _ in expected])


def test_a_value_is_believed_as_long_as_sampling_explains_the_group() -> None:
    # Four rewards of variance 1/4 have a mean of deviation 1/4: one deviation off is no reason to doubt, two are.
    history = replace(nothing_known(1), within=np.full(1, 0.25), seen=np.ones(1, dtype=np.bool_))
    for row, trust in (([1.0, 0.0, 0.0, 0.0], 1.0), ([1.0, 1.0, 0.0, 0.0], 0.25), ([1.0] * 4, 1 / 16)):
        found = remembering("v05", [])(replace(reward_batch([row]), history=history))
        np.testing.assert_allclose(found.weight, trust)
        np.testing.assert_allclose(found.baseline, (1 - trust) * np.mean(row))


@some_examples
@given(steps_strategy, group_rows)
def test_ha_dw_equals_its_oracle(steps: list[Step], rows: Rows) -> None:
    batches = [[clip01(r) for _, row in groups for r in row if r is not None] for groups, _ in steps]
    found = remembering("ha_dw", steps)(sized_batch(rows)).values
    assert_rows(ragged(found, rows), ha_dw(rows, [batch for batch in batches if batch]), rtol=1e-5)


def test_rare_successes_of_a_hard_prompt_weigh_more_than_those_of_an_easy_one() -> None:
    rows = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    values = remembering("ha_dw", [])(sized_batch(rows, "ab")).values
    plain = estimated("grpo", rows)
    # The anchor is 1/2, one prompt a quarter below and the other a quarter above.
    ratio = values / np.array(plain, dtype=float)
    up, down = 1.3 * math.exp(0.25), 1.3 * math.exp(-0.25)
    np.testing.assert_allclose(ratio, [[up, down, down, down], [down, down, down, up]])


@some_examples
@given(steps_strategy, group_rows, lag_lists, st.data())
def test_spo_pp_equals_its_oracle(steps: list[Step], rows: Rows, lags: list[list[int]], data: st.DataObject) -> None:
    lengths = [[data.draw(st.integers(0, 9)) for _ in row] for row in rows]
    born = sampled_by(len(steps), lags[-1])
    batch = replace(reward_batch(rows, lengths, prompts="abca"), born=born)
    found = remembering("spo_pp", steps, lags)(batch)
    at_dispatch = [spo_pp_value(p, version, steps, lags) for p, version in zip("abca", born.tolist(), strict=True)]
    residuals = [each(row, lambda i, r, v=v: r - v) for row, (v, _) in zip(rows, at_dispatch, strict=True)]
    assert_rows(ragged(found.values, rows), whitened_by_tokens(residuals, lengths))
    np.testing.assert_array_equal(found.weight, [float(seen) for _, seen in at_dispatch])


def test_spo_pp_values_a_group_by_what_was_known_when_it_was_dispatched() -> None:
    steps: list[Step] = [([("a", [1.0] * 4)], 0.0), ([("a", [0.0] * 4)], 0.0)]
    estimator = remembering("spo_pp", steps, [[0], [0]])
    values = []
    for version in range(3):
        batch = reward_batch([[1.0, 0.0], [1.0, 0.0]], prompts="ab")
        values.append(estimator(replace(batch, born=np.array([version, version]))).baseline)
    # b was never seen: 1/2. Whitening takes the mean of r - v, the same for all completions, out of both.
    np.testing.assert_allclose([a - b for a, b in values], [0.0, 4.5 / 5 - 0.5, 4.5 / 9 - 0.5])


def test_spo_pp_forgets_what_was_dispatched_too_long_ago_to_matter() -> None:
    steps: list[Step] = [([(prompt, [1.0])], 0.01) for prompt in "abcd" * 40]
    state = remembering("spo_pp", steps, [[0]] * len(steps)).state()
    assert len(state["overwritten_row"]) == len(state["event_times"]) == 64


surprisal_rows = st.lists(st.one_of(st.none(), st.floats(0, 3, width=32)), min_size=6, max_size=6)


@some_examples
@given(group_rows, st.lists(surprisal_rows, min_size=4, max_size=4))
def test_rl_zvp_equals_its_oracle(rows: Rows, heard: Rows) -> None:
    surprisals = [own[: len(row)] for row, own in zip(rows, heard, strict=True)]
    batch = replace(sized_batch(rows), surprisals=padded(surprisals))
    found = configuration("rl_zvp").estimator.create()(batch).values
    assert_rows(ragged(found, rows), [rl_zvp(row, own) for row, own in zip(rows, surprisals, strict=True)], rtol=1e-5)


def test_a_batch_without_surprisals_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="rl_zvp needs surprisals"):
        estimated("rl_zvp", [[1.0, 1.0]])


def sized_batch(rows: Rows, prompts: str = "abca") -> RewardBatch:
    return replace(reward_batch(rows, prompts=prompts), sizes=np.array([len(row) for row in rows]))


# --- groups of which errors left a single reward ----------------------------------------------------------------------
COMPARED_WITH_MORE = {
    "hierarchical": "its cluster's and the prompt's memory",
    "reinforce_pp": "the whole batch",
    "krpo": "the filter's start at 0",
    "ngrpo": "the virtual reward",
    "james_stein": "the other groups",
    "spo": "the prompt's memory",
    "dbb": "the prompt's memory",
    "ebpo": "all groups",
    "spo_pp": "the prompt's memory",
    "v05": "the prompt's or its cluster's memory",
    "w_reinforce": "nothing: each completion is pushed alone",
    "rl_zvp": "its surprisal alone",
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
