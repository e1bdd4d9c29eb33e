"""What n samples of a prompt say of k: pure functions of how many there are and how many are right."""

import math
from collections import Counter
from collections.abc import Sequence


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that at least one of k samples is right; unbiased, from n >= k. Source: Chen et al., arXiv 2107.03374.

    Raises ValueError where there are fewer than k.
    """
    _refuse(n, right, k)
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def pass_hat_k(n: int, right: int, k: int) -> float:
    """pass^k: chance that all of k samples are right; unbiased. Source: tau-bench, arXiv 2406.12045."""
    _refuse(n, right, k)
    return math.comb(right, k) / math.comb(n, k)


def g_pass_at_k(n: int, right: int, k: int, threshold: float) -> float:
    """G-Pass@k: chance that at least `threshold` of k samples, and one, are right; unbiased. Source: arXiv 2412.13147."""
    _refuse(n, right, k)
    # 1e-9: .6 of 5 is 3, whatever floating point makes of it.
    return _at_least(n, right, k, max(math.ceil(k * threshold - 1e-9), 1))


def mg_pass_at_k(n: int, right: int, k: int) -> float:
    """mG-Pass@k: G-Pass@k, averaged over the thresholds from 1/2 to 1. Source: arXiv 2412.13147."""
    _refuse(n, right, k)
    return 2.0 / k * math.fsum(_at_least(n, right, k, i) for i in range(math.ceil(k / 2) + 1, k + 1))


def maj_at_k(answers: Sequence[str | None], right: Sequence[bool], k: int) -> float:
    """1 if the answer that most of the first k samples give is right, else 0; of equally frequent ones the first counts.

    answers: of each sample, None where it gives none, which is no vote. Samples with the same answer may be judged differently: the
    majority is as right as the first that gave it. Source: self-consistency, arXiv 2203.11171.
    """
    _refuse(len(answers), 0, k)
    votes = Counter(answer for answer in answers[:k] if answer is not None)
    if not votes:
        return 0.0
    winner = max(votes, key=lambda answer: (votes[answer], -answers.index(answer)))
    return float(right[answers.index(winner)])


def _at_least(n: int, right: int, k: int, least: int) -> float:
    """Chance that at least `least` of k drawn from n, `right` of which are right, are."""
    ways = sum(math.comb(right, j) * math.comb(n - right, k - j) for j in range(least, min(right, k) + 1))
    return ways / math.comb(n, k)


def _refuse(n: int, right: int, k: int) -> None:
    if not 0 < k <= n or not 0 <= right <= n:
        raise ValueError(f"{n} samples, {right} of them right, say nothing of {k}; k is 1 to {n}")
