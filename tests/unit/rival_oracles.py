"""What the rivals of METHODS G are to give, one completion at a time in plain Python."""

import math
from fractions import Fraction

from tests.unit.estimator_oracles import Row, Rows, deviation, each, known, mean


def qae(rows: Rows, lengths: list[list[int]]) -> Rows:
    def advantage(row: Row, r: float) -> float:
        rewards = known(row)
        enough = [q for q in rewards if sum(x <= q for x in rewards) >= Fraction(2, 5) * len(rewards)]
        spread = deviation(rewards, 1) if len(rewards) > 1 else 0.0
        return (r - min(enough)) / (spread + 1e-6)

    return [each(row, lambda i, r, row=row: advantage(row, r)) for row in rows]


def w_reinforce(rows: Rows, lengths: list[list[int]]) -> Rows:
    return [each(row, lambda i, r: 0.1 if r >= 1 else -1.0) for row in rows]


def slope_of_pass_at_k(n: int, correct: int, k: int) -> float:
    """k E[(1 - p)^(k - 1)] for p ~ Beta(1 + correct, 1 + n - correct), from the moments of the Beta distribution."""
    wrong = n - correct + 1
    logarithm = math.lgamma(wrong + k - 1) - math.lgamma(wrong) + math.lgamma(n + 2) - math.lgamma(n + 2 + k - 1)
    return k * math.exp(logarithm)


def bbg(rows: Rows, lengths: list[list[int]]) -> Rows:
    def advantage(row: Row, i: int, r: float) -> float:
        n, correct = len(known(row)), sum(x >= 1 for x in known(row))
        weight = slope_of_pass_at_k(n, correct, 16) / slope_of_pass_at_k(n, 1, 16)
        if correct == 0:
            return -weight
        others = [float(x >= 1) for j, x in enumerate(row) if j != i and x is not None]
        return weight * (float(r >= 1) - mean(others)) if others else 0.0

    return [each(row, lambda i, r, row=row: advantage(row, i, r)) for row in rows]
