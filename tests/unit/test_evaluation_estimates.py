"""Estimates of k from n samples, and how sure means over prompts are: by counting all ways, by closed forms and by simulation."""

import itertools
import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from deploy.evaluation.estimates import g_pass_at_k, maj_at_k, mg_pass_at_k, pass_at_k, pass_hat_k
from deploy.evaluation.intervals import (
    bootstrap_interval,
    difference_variance,
    exact_interval,
    prompts_to_see,
    sampling_error,
    t_interval,
)
from tests.conftest import ROOT

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("n", [1, 3, 6])
@pytest.mark.parametrize(
    ("estimate", "holds"),
    [
        (pass_at_k, lambda drawn: any(drawn)),
        (pass_hat_k, lambda drawn: all(drawn)),
        (lambda n, c, k: g_pass_at_k(n, c, k, 0.6), lambda drawn: sum(drawn) >= max(math.ceil(0.6 * len(drawn) - 1e-9), 1)),
    ],
)  # fmt: skip
def test_an_estimate_is_the_share_of_all_ways_to_draw_k(
    n: int, estimate: Callable[[int, int, int], float], holds: Callable[[tuple[bool, ...]], bool]
) -> None:
    for right in range(n + 1):
        samples = [True] * right + [False] * (n - right)
        for k in range(1, n + 1):
            ways = list(itertools.combinations(samples, k))
            assert estimate(n, right, k) == pytest.approx(sum(map(holds, ways)) / len(ways), abs=1e-12)


def test_mg_pass_is_the_mean_over_thresholds_above_a_half() -> None:
    assert mg_pass_at_k(8, 6, 4) == pytest.approx((g_pass_at_k(8, 6, 4, 0.75) + g_pass_at_k(8, 6, 4, 1.0)) / 2)


@pytest.mark.parametrize(
    ("answers", "right", "k", "value"),
    [
        (["7", "8", "7"], [False, True, False], 3, 0.0),
        (["7", "8", "8"], [False, True, True], 3, 1.0),
        (["7", "8"], [True, False], 2, 1.0),  # equally frequent: the first
        ([None, None, "5"], [False, False, True], 3, 1.0),
        ([None, None, "5"], [False, False, True], 2, 0.0),
    ],
)
def test_the_majority_of_the_first_k(answers: list[str | None], right: list[bool], k: int, value: float) -> None:
    assert maj_at_k(answers, right, k) == value


@pytest.mark.parametrize(("n", "right", "k"), [(2, 1, 3), (2, 3, 1), (2, 1, 0)])
def test_what_samples_do_not_say_is_refused(n: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"{n} samples, {right} of them right, say nothing of {k}; k is 1 to {n}"):
        pass_at_k(n, right, k)


def drawn(random: np.random.Generator, prompts: int, samples: int) -> list[list[float]]:
    chances = random.beta(1, 2, prompts)
    return (random.random((prompts, samples)) < chances[:, None]).astype(float).tolist()


@pytest.mark.parametrize("interval", [t_interval, lambda values: bootstrap_interval(values, 800)])
def test_intervals_hold_the_truth_as_often_as_they_say(interval: Callable[[list[float]], object]) -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = interval([float(np.mean(row)) for row in drawn(random, 40, 4)])
        held += found.low <= 1 / 3 <= found.high  # type: ignore[attr-defined]
    assert 0.92 < held / 400 < 0.98


def test_the_bootstrap_draws_prompts_with_replacement() -> None:
    values = np.random.default_rng(2).binomial(3, 0.4, 30) / 3
    drawn = np.random.default_rng(3).choice(values, (200_000, 30)).mean(axis=1)
    found = bootstrap_interval(values.tolist(), draws=200_000)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1 / 90 + 1e-9)


def test_the_bootstrap_of_many_prompts_is_as_large_as_their_different_values() -> None:
    values = (np.random.default_rng(4).binomial(8, 0.4, 200_000) / 8).tolist()
    tracemalloc.start()
    bootstrap_interval(values)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 50e6


def held(draws: np.ndarray, chance: float, interval: Callable[[list[float]], object]) -> tuple[float, float]:
    """Share of evaluations ([tries, prompts, samples] of 0 and 1) whose interval holds the truth, and its mean width."""
    found = [interval(row) for row in draws.mean(axis=2).tolist()]
    inside = [one.low <= chance <= one.high for one in found]  # type: ignore[attr-defined]
    return sum(inside) / len(found), sum(2 * one.half for one in found) / len(found)  # type: ignore[attr-defined]


@pytest.mark.parametrize("alike", [0.3, 2.0, 20.0])
@pytest.mark.parametrize(("prompts", "samples"), [(16, 4), (16, 16), (40, 1), (40, 16), (128, 4)])
@pytest.mark.parametrize("chance", [0.01, 0.05, 0.3, 0.98])
def test_the_exact_interval_holds_the_truth_where_successes_or_failures_are_rare(
    chance: float, prompts: int, samples: int, alike: float
) -> None:
    """alike: how little samples of a prompt are; of `prompts` times `samples`, there may be a single success, or none."""
    random = np.random.default_rng(5)
    chances = random.beta(alike * chance, alike * (1 - chance), (400, prompts, 1))
    draws = (random.random((400, prompts, samples)) < chances).astype(float)
    exact, width = held(draws, chance, lambda values: exact_interval(values, samples))
    # Of 400 tries with a chance of .95, fewer than 371 come once in 40,000 times.
    assert exact >= 370 / 400
    if chance == 0.3 and prompts == 128:
        assert width < 1.1 * held(draws, chance, t_interval)[1]


def test_where_all_prompts_agree_the_exact_interval_is_that_of_a_draw_each() -> None:
    for value in (0.0, 1.0):
        found = exact_interval([value] * 128, 4)
        assert found is not None and found.half > 0
        # Clopper and Pearson's bound of 0 of n is 1 - .025 ^ (1 / n).
        assert (1 - found.low if value else found.high) == pytest.approx(1 - 0.025 ** (1 / 128), rel=1e-9)
    single = exact_interval([1.0] * 3 + [0.0] * 17)
    from scipy.stats import binomtest

    expected = binomtest(3, 20).proportion_ci(0.95, "exact")
    assert single is not None and (single.low, single.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert exact_interval([1.0]) is None


def test_the_coverage_that_the_docs_name_is_what_is_simulated() -> None:
    """The table of docs/evaluation.md: 4 samples of each prompt, chances of prompts from a Beta distribution with a + b = 2."""
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = [line.strip("| \n").split(" | ") for line in page.splitlines() if line.startswith("| .")]
    assert len(rows) >= 4
    for row in rows:
        chance, prompts, *said = (float(cell.removesuffix(" %").split(" ")[0]) for cell in row)
        random = np.random.default_rng(0)
        chances = random.beta(2 * chance, 2 * (1 - chance), (600, int(prompts), 1))
        draws = (random.random((600, int(prompts), 4)) < chances).astype(float)
        intervals = (
            lambda values: exact_interval(values, 4),
            t_interval,
            lambda values: bootstrap_interval(values, 500),
        )
        for share, interval in zip(said, intervals, strict=True):
            assert 100 * held(draws, chance, interval)[0] == pytest.approx(share, abs=5)


def test_an_interval_of_one_prompt_is_none() -> None:
    assert t_interval([1.0]) is None and bootstrap_interval([1.0]) is None and sampling_error([[1.0]]) is None


def test_the_error_of_the_samples_is_what_drawing_them_again_gives() -> None:
    random = np.random.default_rng(1)
    chances = random.beta(1, 2, 50)
    again = (random.random((2000, 50, 4)) < chances[:, None]).astype(float)
    errors = np.array([sampling_error(samples.tolist()) for samples in again], dtype=np.float64)
    # Squared errors are unbiased, their roots are not.
    assert np.sqrt((errors**2).mean()) == pytest.approx(again.mean(axis=(1, 2)).std(), rel=0.04)


@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_so_many_prompts_show_a_difference_as_often_as_they_are_to(alike: float) -> None:
    """Two policies whose chances differ by .1; `alike`: on the same prompts they can do the same but for that."""
    random = np.random.default_rng(2)

    def chances(prompts: int) -> tuple[np.ndarray, np.ndarray]:
        first, second = 0.2 + 0.5 * random.random((2, prompts))
        return first, (first if alike else second) + 0.1

    pilot = (random.random((3000, 4)) < chances(3000)[0][:, None]).astype(float).tolist()
    prompts = prompts_to_see(0.1, difference_variance(pilot, alike))
    seen = 0
    for _ in range(300):
        one, other = ((random.random((prompts, 4)) < p[:, None]).mean(axis=1) for p in chances(prompts))
        found = t_interval((other - one).tolist())
        assert found is not None
        seen += found.low > 0
    assert 0.72 < seen / 300 < 0.88
