"""What every estimator is to give, one completion at a time in plain Python; the batches and pasts that are tried."""

import math
from collections.abc import Callable, Sequence
from math import comb

import numpy as np
from hypothesis import strategies as st

from moments_service.config import MomentsConfig
from moments_service.estimators import RememberingEstimator, RewardBatch
from moments_service.messages.groups import PolicyMove
from moments_service.moments import CommittedRewards, History

Row = list[float | None]
Rows = list[Row]

binned = st.one_of(st.sampled_from([0.0, 1.0]), st.integers(-8, 8).map(lambda quarters: quarters / 4))
anything = st.one_of(binned, st.floats(-2, 2, width=32))


def batches_of(reward: st.SearchStrategy[float], max_groups: int = 6) -> st.SearchStrategy[list]:
    """Batches of (reward or None, length) pairs in ragged groups."""
    completion = st.tuples(st.one_of(st.none(), reward), st.integers(0, 9))
    return st.lists(st.lists(completion, min_size=1, max_size=8), min_size=1, max_size=max_groups)


def nothing_known(groups: int) -> History:
    zeros = np.zeros(groups)
    return History(zeros, zeros, zeros, np.zeros(groups, dtype=np.bool_), zeros, zeros)


def padded(rows: Sequence[Sequence[float | None]], missing: float = math.nan) -> np.ndarray:
    width = max(len(row) for row in rows)
    return np.array([[missing if x is None else x for x in row] + [missing] * (width - len(row)) for row in rows])


def reward_batch(rows: Rows, lengths: Sequence[Sequence[int]] | None = None, prompts: str = "") -> RewardBatch:
    lengths = lengths or [[1] * len(row) for row in rows]
    names = tuple(prompts) or tuple(f"prompt-{m}" for m in range(len(rows)))
    return RewardBatch(padded(rows), padded(lengths, 0.0), names, nothing_known(len(rows)))


def configuration(name: str, **options: float) -> MomentsConfig:
    return MomentsConfig.model_validate({"estimator": {"kind": name, **options}})


def estimated(name: str, rows: Rows, lengths: Sequence[Sequence[int]] | None = None, **options: float) -> Rows:
    """What an estimator without memory makes of ragged rows, as ragged rows."""
    values = configuration(name, **options).estimator.create()(reward_batch(rows, lengths)).values
    return ragged(values, rows)


def ragged(values: np.ndarray, rows: Rows) -> Rows:
    return [
        [None if r is None else float(a) for r, a in zip(row, found, strict=False)]
        for row, found in zip(rows, values, strict=True)
    ]


def known(row: Row) -> list[float]:
    return [r for r in row if r is not None]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def deviation(values: Sequence[float], ddof: int) -> float:
    return math.sqrt(math.fsum((x - mean(values)) ** 2 for x in values) / (len(values) - ddof))


def assert_rows(found: Rows, expected: Rows, rtol: float = 1e-6, atol: float = 1e-6) -> None:
    # Where a scale vanishes, rounding of a mean is divided by the epsilon beside it: hence the absolute tolerance.
    for mine, theirs in zip(found, expected, strict=True):
        assert [a is None for a in mine] == [a is None for a in theirs]
        np.testing.assert_allclose(known(mine), known(theirs), rtol=rtol, atol=atol)


# --- oracles of the estimators without memory -------------------------------------------------------------------------
Oracle = Callable[[Rows, list[list[int]]], Rows]


def each(row: Row, advantage: Callable[[int, float], float]) -> Row:
    return [None if r is None else advantage(i, r) for i, r in enumerate(row)]


def dr_grpo(rows: Rows, lengths: list[list[int]]) -> Rows:
    return [each(row, lambda i, r, row=row: r - mean(known(row))) for row in rows]


def rloo(rows: Rows, lengths: list[list[int]]) -> Rows:
    def left_out(row: Row, i: int, r: float) -> float:
        others = [x for j, x in enumerate(row) if j != i and x is not None]
        return r - mean(others) if others else 0.0

    return [each(row, lambda i, r, row=row: left_out(row, i, r)) for row in rows]


def whitened_by_tokens(rows: Rows, lengths: list[list[int]]) -> Rows:
    tokens = [
        r
        for row, sizes in zip(rows, lengths, strict=True)
        for r, n in zip(row, sizes, strict=True)
        for _ in range(n)
        if r is not None
    ]
    tokens = tokens or [r for row in rows for r in known(row)]
    if not tokens:
        return rows
    return [each(row, lambda i, r: (r - mean(tokens)) / (deviation(tokens, 0) + 1e-6)) for row in rows]


def reinforce_pp_baseline(rows: Rows, lengths: list[list[int]]) -> Rows:
    return whitened_by_tokens(dr_grpo(rows, lengths), lengths)


def lite_ppo(rows: Rows, lengths: list[list[int]]) -> Rows:
    every = [r for row in rows for r in known(row)]
    spread = deviation(every, 1) if len(every) > 1 else 0.0
    return [each(row, lambda i, r, row=row: (r - mean(known(row))) / (spread + 1e-4)) for row in rows]


def opo(rows: Rows, lengths: list[list[int]]) -> Rows:
    def baseline(row: Row, sizes: list[int]) -> float:
        pairs = [(r, n) for r, n in zip(row, sizes, strict=True) if r is not None]
        tokens = sum(n for _, n in pairs)
        return sum(r * n for r, n in pairs) / tokens if tokens else mean(known(row))

    baselines = [baseline(row, sizes) for row, sizes in zip(rows, lengths, strict=True)]
    return [each(row, lambda i, r, b=b: r - b) for row, b in zip(rows, baselines, strict=True)]


def ngrpo(rows: Rows, lengths: list[list[int]]) -> Rows:
    def advantage(row: Row, r: float) -> float:
        extended = [*known(row), 1.0]
        return (r - mean(extended)) / (deviation(extended, 1) + 1e-6)

    return [each(row, lambda i, r, row=row: advantage(row, r)) for row in rows]


def clip01(r: float) -> float:
    return min(max(r, 0.0), 1.0)


def maxrl(rows: Rows, lengths: list[list[int]]) -> Rows:
    def advantage(row: Row, r: float) -> float:
        p = mean([clip01(x) for x in known(row)])
        return (clip01(r) - p) / p if p > 0 else 0.0

    return [each(row, lambda i, r, row=row: advantage(row, r)) for row in rows]


def pass_at_k(k: int) -> Oracle:
    def advantage(row: Row, r: float) -> float:
        n, c = len(known(row)), sum(x >= 1.0 for x in known(row))
        if k > n:
            return 0.0
        mean_reward = 1 - comb(n - c, k) / comb(n, k)
        sigma = math.sqrt(mean_reward * (1 - mean_reward))
        if sigma == 0:
            return 0.0
        if r >= 1.0:
            return (1 - mean_reward) / sigma
        return (1 - mean_reward - comb(n - c - 1, k - 1) / comb(n - 1, k - 1)) / sigma

    return lambda rows, lengths: [each(row, lambda i, r, row=row: advantage(row, r)) for row in rows]


def krpo(rows: Rows, lengths: list[list[int]]) -> Rows:
    result = []
    for row in rows:
        x, p, filtered = 0.0, 1.0, list[float | None]()
        for r in row:
            if r is not None:
                gain = (p + 1e-5) / (p + 1e-5 + 1e-2)
                x, p = x + gain * (r - x), (1 - gain) * (p + 1e-5)
            filtered.append(None if r is None else (r - x) / (math.sqrt(p) + 1e-8))
        result.append(filtered)
    return result


def james_stein(rows: Rows, lengths: list[list[int]]) -> Rows:
    def advantage(i: int, j: int, r: float) -> float:
        own = [x for k, x in enumerate(rows[i]) if k != j and x is not None]
        others = [known(row) for k, row in enumerate(rows) if k != i and known(row)]
        if not others:
            return r - mean(own) if own else 0.0
        centre = mean([mean(group) for group in others])
        if not own:
            return r - centre
        sampling = mean([deviation(group, 1) ** 2 / len(group) for group in others if len(group) > 1])
        spread = mean([(mean(group) - centre) ** 2 for group in others])
        n = len(others) + 1
        shrink = (n - 1) / n * sampling / (sampling + spread) if sampling > 0 else 0.0
        return r - ((1 - shrink) * mean(own) + shrink * centre)

    return [each(row, lambda j, r, i=i: advantage(i, j, r)) for i, row in enumerate(rows)]


def integrated_beta_density(p: float, alpha: float, beta: float) -> float:
    """Beta(alpha, beta) at p, its norm integrated numerically."""
    points = 100_000
    x = (np.arange(points) + 0.5) / points
    logarithms = (alpha - 1) * np.log(x) + (beta - 1) * np.log(1 - x)
    top = logarithms.max()
    norm = np.exp(np.maximum(logarithms - top, -700)).sum() / points
    if (p == 0 and alpha > 1) or (p == 1 and beta > 1):
        return 0.0
    # As logarithms: groups that are nearly equal give exponents in the thousands.
    at = (0.0 if alpha == 1 else (alpha - 1) * math.log(p)) + (0.0 if beta == 1 else (beta - 1) * math.log(1 - p))
    return float(math.exp(at - top) / norm)


def bnpo(rows: Rows, lengths: list[list[int]]) -> Rows:
    rates = [mean([clip01(r) for r in known(row)]) for row in rows if known(row)]
    variance = deviation(rates, 1) ** 2 if len(rates) > 1 else 1.0
    variance = 1.0 if variance < 1e-12 else variance
    centre = mean(rates)
    c = centre * (1 - centre) / variance - 1
    alpha, beta = max(1.0, 1 + c * centre / 3), max(1.0, 1 + c * (1 - centre) / 3)

    def advantage(row: Row, r: float) -> float:
        p = mean([clip01(x) for x in known(row)])
        if clip01(r) == p:
            return 0.0
        return (clip01(r) - p) * min(1 / max(integrated_beta_density(p, alpha, beta), 1e-300), 1e6)

    return [each(row, lambda i, r, row=row: advantage(row, r)) for row in rows]


# --- estimators that remember -----------------------------------------------------------------------------------------
Step = tuple[list[tuple[str, Row]], float | None]
"""Groups with their prompts, and how far the step moved the policy."""

steps_strategy = st.lists(
    st.tuples(
        st.lists(
            st.tuples(st.sampled_from("abcd"), st.lists(st.one_of(st.none(), anything), min_size=1, max_size=4)),
            min_size=1,
            max_size=4,
        ),
        st.one_of(st.none(), st.floats(0, 0.1)),
    ),
    min_size=0,
    max_size=6,
)
group_rows = st.lists(st.lists(st.one_of(st.none(), anything), min_size=1, max_size=6), min_size=4, max_size=4)


def remembering(
    name: str, steps: list[Step], lags: Sequence[Sequence[int]] | None = None, **options: float
) -> RememberingEstimator:
    """An estimator that has folded these steps. lags: by how many versions the policy that sampled each group was older."""
    estimator = configuration(name, **options).estimator.create()
    assert isinstance(estimator, RememberingEstimator)
    for version, (groups, log_ratio) in enumerate(steps):
        move = None if log_ratio is None else PolicyMove(kl=1.0, log_ratio=log_ratio)
        prompts = tuple(prompt for prompt, _ in groups)
        clusters = np.zeros(len(groups), dtype=np.int64)
        born = None if lags is None else sampled_by(version, lags[version][: len(groups)])
        rewards = padded([row for _, row in groups])
        estimator.fold(CommittedRewards(clusters, rewards, prompts, version + 1, move, born=born))
    return estimator


def sampled_by(version: int, lags: Sequence[int]) -> np.ndarray:
    return np.array([max(version - lag, 0) for lag in lags], dtype=np.int64)


def visits(prompt: str, steps: list[Step]) -> list[tuple[int, float, float]]:
    """(step, successes, failures) of each step with a reward for the prompt."""
    result = []
    for number, (groups, _) in enumerate(steps):
        scores = [clip01(r) for name, row in groups if name == prompt for r in known(row)]
        if scores:
            result.append((number, math.fsum(scores), math.fsum(1 - x for x in scores)))
    return result


def batch_whitened(residuals: Rows) -> Rows:
    return whitened_by_tokens(residuals, [[1] * len(row) for row in residuals])
