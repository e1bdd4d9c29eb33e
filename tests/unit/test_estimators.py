"""Every estimator against an oracle of its own: one completion at a time in plain Python, from METHODS B."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moments_service.estimators import ESTIMATORS
from moments_service.estimators.bnpo import beta_density
from tests.unit.estimator_oracles import (
    Oracle,
    Rows,
    Step,
    anything,
    assert_rows,
    batch_whitened,
    batches_of,
    binned,
    bnpo,
    clip01,
    configuration,
    deviation,
    dr_grpo,
    each,
    estimated,
    group_rows,
    integrated_beta_density,
    james_stein,
    known,
    krpo,
    lite_ppo,
    maxrl,
    mean,
    ngrpo,
    opo,
    pass_at_k,
    ragged,
    reinforce_pp_baseline,
    remembering,
    reward_batch,
    rloo,
    steps_strategy,
    visits,
    whitened_by_tokens,
)

pytestmark = pytest.mark.unit

some_examples = settings(max_examples=50, deadline=None)

ORACLES: dict[str, Oracle] = {
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_pp": whitened_by_tokens,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "lite_ppo": lite_ppo,
    "opo": opo,
    "ngrpo": ngrpo,
    "maxrl": maxrl,
    "pass_at_k": pass_at_k(4),
    "krpo": krpo,
    "james_stein": james_stein,
    "bnpo": bnpo,
}

CASES: dict[str, Rows] = {
    "uniform": [[1.0] * 4, [0.0] * 4, [0.3] * 3],
    "one of one": [[1.0]],
    "groups of one": [[1.0], [0.0], [-1.0]],
    "groups of two": [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]],
    "nothing at all": [[None, None], [None]],
    "one group": [[1.0, 0.0, 0.0, None, 1.0, 0.0, 0.0]],
    "some groups without rewards": [[None, None], [1.0, 0.0, 1.0], [None], [0.0, 0.0, 1.0]],
    "not binary": [[0.25, -1.5, 2.0], [0.5, 0.5, 0.75], [-2.0, -1.0]],
    "all negative": [[-1.0, -0.5, -2.0], [-1.0, -1.0]],
    "one success of eight": [[1.0] + [0.0] * 7, [0.0] * 8],
}


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", ORACLES)
def test_the_named_cases_equal_the_oracle(name: str, rows: Rows) -> None:
    lengths = [[1 + (3 * m + i) % 5 for i in range(len(row))] for m, row in enumerate(rows)]
    assert_rows(estimated(name, rows, lengths), ORACLES[name](rows, lengths), rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in ORACLES if name != "bnpo"])
@some_examples
@given(batch=batches_of(anything))
def test_any_batch_equals_the_oracle(name: str, batch: list) -> None:
    rows, lengths = [[r for r, _ in group] for group in batch], [[n for _, n in group] for group in batch]
    assert_rows(estimated(name, rows, lengths), ORACLES[name](rows, lengths))


@settings(max_examples=25, deadline=None)
@example(batch=[[(0.0, 0), (0.0, 0), (1.0, 0), (0.25, 0)], [(0.0, 0)] * 4 + [(1.0, 0), (1.0, 0), (0.25, 0)]])
@given(batch=batches_of(binned))
def test_bnpo_equals_its_oracle(batch: list) -> None:
    # Rewards in steps: an integral on a grid cannot follow a density as narrow as nearly equal groups make it.
    rows = [[r for r, _ in group] for group in batch]
    assert_rows(estimated("bnpo", rows), bnpo(rows, []), rtol=1e-3, atol=1e-9)


# --- closed forms and options -----------------------------------------------------------------------------------------
HALF = [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]


@some_examples
@given(batch=batches_of(anything), k=st.integers(1, 10))
def test_pass_at_k_for_every_k(batch: list, k: int) -> None:
    rows = [[r for r, _ in group] for group in batch]
    assert_rows(estimated("pass_at_k", rows, k=k), pass_at_k(k)(rows, []))


def test_pass_at_one_is_grpo_with_the_population_deviation() -> None:
    expected = [[(r - mean(row)) / deviation(row, 0) for r in row] for row in HALF]
    assert_rows(estimated("pass_at_k", HALF, k=1), expected)


@pytest.mark.parametrize("k", [4, 5, 100])
def test_pass_at_k_of_a_whole_group_or_more_teaches_nothing(k: int) -> None:
    assert_rows(estimated("pass_at_k", HALF, k=k), [[0.0] * 4] * 2)


def test_pass_at_two_of_the_paper_in_numbers() -> None:
    # c = 1 of N = 4, k = 2: R = 1 - 3/6, sigma = 1/2; the right one gets 1, a wrong one (1/2 - 2/3) / (1/2).
    assert_rows(estimated("pass_at_k", [[1.0, 0.0, 0.0, 0.0]], k=2), [[1.0, -1 / 3, -1 / 3, -1 / 3]])


def test_reinforce_pp_over_equal_lengths_is_the_mean_and_deviation_of_the_batch() -> None:
    every = np.array(HALF)
    expected = (every - every.mean()) / (every.std() + 1e-6)
    found = estimated("reinforce_pp", HALF, [[7] * 4] * 2)
    np.testing.assert_allclose(np.array(found, dtype=float), expected, rtol=1e-12)


@pytest.mark.parametrize("mean_of_tokens", [False, True])
def test_the_baseline_of_opo_has_the_least_second_moment_of_the_gradient(mean_of_tokens: bool) -> None:
    # Unit scores of tokens, each in a direction of its own: a completion's gradient has the squared norm L, or 1 / L.
    rewards, lengths = np.array([1.0, 0.0, 0.5, 1.0]), np.array([1, 30, 4, 9])

    def second_moment(baseline: float) -> float:
        scores = [np.ones(n) / (n if mean_of_tokens else 1) for n in lengths.tolist()]
        return math.fsum(
            float(((r - baseline) * own @ own) * (r - baseline)) for r, own in zip(rewards, scores, strict=True)
        )

    batch = reward_batch([rewards.tolist()], [lengths.tolist()])
    power = -1.0 if mean_of_tokens else 1.0
    best = configuration("opo", length_power=power).estimator.create()(batch).baseline[0]
    assert second_moment(best) < min(second_moment(best - 1e-3), second_moment(best + 1e-3))
    other = configuration("opo", length_power=-power).estimator.create()(batch).baseline[0]
    assert second_moment(other) > 1.2 * second_moment(best)


def test_opo_without_length_is_the_mean_of_those_that_have_tokens() -> None:
    assert_rows(estimated("opo", [[1.0, 0.0, 0.0]], [[5, 1, 0]], length_power=0), [[0.5, -0.5, -0.5]])
    assert_rows(estimated("opo", [[1.0, 0.0, 0.0]], [[5, 1, 0]], length_power=-1), [[1 - 1 / 6, -1 / 6, -1 / 6]])


def test_maxrl_weighs_a_lone_success_by_the_size_of_its_group() -> None:
    assert_rows(estimated("maxrl", [[1.0] + [0.0] * 7]), [[7.0] + [-1.0] * 7])


def test_ngrpo_pushes_an_all_wrong_group_down_and_an_all_right_one_nowhere() -> None:
    # Four zeros and the virtual one: mean 1/5, variance (4/25 + 16/25) / 4 = 1/5.
    wrong, right = estimated("ngrpo", [[0.0] * 4, [1.0] * 4])
    np.testing.assert_allclose(known(wrong), -0.2 / math.sqrt(0.2), rtol=1e-5)
    assert known(right) == [0.0] * 4
    doubled = estimated("ngrpo", [[0.0] * 4], r_max=2.0)
    np.testing.assert_allclose(known(doubled[0]), -0.2 / math.sqrt(0.2), rtol=1e-5)


def test_james_stein_reduces_to_rloo_for_a_lone_group() -> None:
    assert_rows(estimated("james_stein", HALF[:1]), estimated("rloo", HALF[:1]))


def test_bnpo_maps_other_ranges_to_the_unit_interval() -> None:
    signed = [[2 * r - 1 for r in row] for row in HALF]
    assert_rows(estimated("bnpo", signed, low=-1, high=1), estimated("bnpo", HALF))


@pytest.mark.parametrize(("p", "alpha", "beta"), [(0.3, 1.0, 1.0), (0.3, 2.5, 1.0), (0.7, 1.0, 4.0), (0.01, 3.3, 80.0)])
def test_the_beta_density_has_its_integral(p: float, alpha: float, beta: float) -> None:
    assert beta_density(p, alpha, beta) == pytest.approx(max(integrated_beta_density(p, alpha, beta), 1e-6), rel=1e-4)


def test_the_weight_of_bnpo_is_bounded() -> None:
    assert beta_density(0.0, 2.0, 2.0) == beta_density(1.0, 2.0, 2.0) == beta_density(0.99, 3.0, 1e6) == 1e-6


def test_krpo_takes_its_noises() -> None:
    x = 1.5 / 2.5
    assert_rows(estimated("krpo", [[1.0]], q=0.5, r=1.0), [[(1 - x) / math.sqrt(0.6)]])


@pytest.mark.parametrize(
    ("name", "option", "value", "wanted"),
    [
        ("pass_at_k", "k", 0, "greater than or equal to 1"),
        ("pass_at_k", "k", 1.5, "valid integer"),
        ("pass_at_k", "k", math.inf, "finite number"),
        ("pass_at_k", "k", math.nan, "finite number"),
        ("ngrpo", "r_max", math.nan, "finite number"),
        ("bnpo", "high", 0, "high = 0: it must be above low = 0"),
        ("bnpo", "low", -math.inf, "finite number"),
        ("krpo", "q", -1, "greater than or equal to 0"),
        ("krpo", "r", 0, "greater than 0"),
        ("spo", "d_half", 0, "greater than 0"),
        ("spo", "rho_min", 1, "less than 1"),
        ("spo", "rho_max", 0.5, "rho_max = 0.5: it must be between rho_min = 0.875 and 1"),
        ("spo", "initial_mass", 0, "greater than 0"),
        ("opo", "length_power", 2, "less than or equal to 1"),
        ("kae", "visits", 0, "greater than or equal to 1"),
        ("qae", "quantile", 0, "greater than 0"),
        ("w_reinforce", "positive", -1, "greater than or equal to 0"),
        ("bbg", "k", 0, "greater than or equal to 1"),
        ("dbb", "discount", 0, "greater than 0"),
        ("dbb", "discount", math.nan, "finite number"),
        ("pass_at_k", "kk", 2, "Extra inputs are not permitted"),
        ("dr_grpo", "k", 2, "Extra inputs are not permitted"),
        ("bv_blend", "k", 2, "Extra inputs are not permitted"),
    ],
)
def test_a_bad_option_is_named_with_its_range(name: str, option: str, value: float, wanted: str) -> None:
    with pytest.raises(ValueError) as caught:
        configuration(name, **{option: value}).estimator.create()
    assert wanted in str(caught.value) and option in str(caught.value)


@pytest.mark.parametrize(("name", "nearest"), [("gropo", "grpo"), ("passatk", "pass_at_k"), ("ebp", "ebpo")])
def test_an_unknown_estimator_gets_the_nearest_name(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown estimator '{name}'; did you mean {nearest}"):
        configuration(name)


# --- estimators that remember -----------------------------------------------------------------------------------------
def spo_value(prompt: str, steps: list[Step]) -> float:
    ones, zeros, last = 0.5, 0.5, None
    for number, successes, failures in visits(prompt, steps):
        if last is not None:
            moves = [move for _, move in steps[last:number]]
            rho = 0.875 if None in moves else min(max(2.0 ** (-math.fsum(moves) / 0.06), 0.875), 0.96)
            ones, zeros = rho * ones, rho * zeros
        ones, zeros, last = ones + successes, zeros + failures, number
    return ones / (ones + zeros)


@some_examples
@given(steps_strategy, group_rows)
def test_spo_equals_its_oracle(steps: list[Step], rows: Rows) -> None:
    found = remembering("spo", steps)(reward_batch(rows, prompts="abca"))
    remembered = [spo_value(prompt, steps) for prompt in "abca"]
    residuals = [each(row, lambda i, r, v=v: r - v) for row, v in zip(rows, remembered, strict=True)]
    assert_rows(ragged(found.values, rows), batch_whitened(residuals))
    np.testing.assert_array_equal(found.weight, [float(bool(visits(p, steps))) for p in "abca"])


@some_examples
@given(steps_strategy, group_rows, st.sampled_from([0.5, 0.9, 1.0]))
def test_dbb_equals_its_oracle(steps: list[Step], rows: Rows, discount: float) -> None:
    found = remembering("dbb", steps, discount=discount)(reward_batch(rows, prompts="abca"))
    expected, weights = [], []
    for prompt, row in zip("abca", rows, strict=True):
        ones, zeros = 1.0, 1.0
        for _, successes, failures in visits(prompt, steps):
            ones, zeros = discount * ones + successes, discount * zeros + failures
        mass, scores = ones + zeros, [clip01(r) for r in known(row)]
        ones = discount * ones + math.fsum(scores)
        zeros = discount * zeros + math.fsum(1 - x for x in scores)
        p = ones / (ones + zeros)
        sigma = math.sqrt(ones * zeros / (ones + zeros) ** 2)
        expected.append(each(row, lambda i, r, p=p, s=sigma: (r - p) / (s + 1e-6)))
        weights.append(discount * mass / (discount * mass + len(scores)) if visits(prompt, steps) else 0.0)
    assert_rows(ragged(found.values, rows), expected)
    np.testing.assert_allclose(found.weight, weights, rtol=1e-12)


@some_examples
@given(steps_strategy, group_rows)
def test_ebpo_equals_its_oracle(steps: list[Step], rows: Rows) -> None:
    found = remembering("ebpo", steps)(reward_batch(rows))
    past = [known(row) for groups, _ in steps for _, row in groups if known(row)]
    freedom = sum(len(group) - 1 for group in past)
    shrinkages, residuals = [], []
    for row in rows:
        shrinkage = 0.0
        if len(past) > 1 and freedom > 0:
            within = math.fsum((r - mean(group)) ** 2 for group in past for r in group) / freedom
            between = deviation([mean(group) for group in past], 1) ** 2
            local = within / max(len(known(row)), 1)
            shrinkage = local / (local + between) if local + between > 0 else 0.0
        everything = mean([mean(group) for group in past])
        value = (1 - shrinkage) * mean(known(row)) + shrinkage * everything
        shrinkages.append(shrinkage)
        residuals.append(each(row, lambda i, r, v=value: r - v))
    np.testing.assert_allclose(found.weight, shrinkages, rtol=1e-6, atol=1e-9)
    assert_rows(ragged(found.values, rows), batch_whitened(residuals), atol=1e-5)


def test_spo_forgets_the_less_the_policy_moved() -> None:
    def counts(log_ratio: float | None) -> tuple[float, float]:
        state = remembering(
            "spo", [([("a", [1.0] * 8)], log_ratio), ([("a", [None])], 0.0), ([("a", [0.0])], 0.0)]
        ).state()
        return float(state["successes"][0]), float(state["failures"][0])

    assert counts(0.0) == pytest.approx((0.96 * 8.5, 0.96 * 0.5 + 1))
    assert counts(0.006) == pytest.approx((2**-0.1 * 8.5, 2**-0.1 * 0.5 + 1))
    assert counts(9.0) == counts(None) == pytest.approx((0.875 * 8.5, 0.875 * 0.5 + 1))


def test_spo_starts_like_its_source_online_or_as_heavy_as_an_offline_start_is() -> None:
    assert 1 / (1 - 0.875) == 8
    for mass in (1.0, 8.0):
        estimator = remembering("spo", [([("a", [1.0])], 0.0)], initial_mass=mass)
        seen, unseen = estimator(reward_batch([[1.0, 0.0], [1.0, 0.0]], prompts="ab")).baseline
        assert seen - unseen == pytest.approx((mass / 2 + 1) / (mass + 1) - 0.5)


def test_dbb_counts_the_current_group_before_it_is_folded_in() -> None:
    # a = 1/2 + 3 and b = 1/2 + 1 of a prompt never seen.
    found = remembering("dbb", [])(reward_batch([[1.0, 1.0, 1.0, 0.0]]))
    np.testing.assert_allclose([found.baseline[0], found.scale[0]], [0.7, math.sqrt(0.21)])
    uniform = remembering("dbb", [])(reward_batch([[1.0, 1.0]])).values
    np.testing.assert_allclose(uniform, math.sqrt(0.5 / 2.5), rtol=1e-5)


def test_ebpo_without_history_is_the_group_mean_over_the_deviation_of_the_batch() -> None:
    found = remembering("ebpo", [])(reward_batch(HALF))
    residuals = np.array(HALF) - np.array(HALF).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found.values, residuals / (residuals.std() + 1e-6))
    np.testing.assert_array_equal(found.weight, 0.0)


def test_the_table_of_estimators_names_each_with_its_options() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "estimators.md").read_text().splitlines()
    table = {cells[1].strip(" `"): cells[4] for line in lines if len(cells := line.split("|")) == 8}
    assert set(ESTIMATORS) <= set(table)
    for name, options in ESTIMATORS.items():
        if name != "bv_blend":
            found = dict(re.findall(r"`(\w+)` \(([\w.-]+)", table[name]))
            defaults = {key: field.default for key, field in options.model_fields.items() if key != "kind"}
            assert {key: type(defaults[key])(yaml.safe_load(value)) for key, value in found.items()} == defaults
