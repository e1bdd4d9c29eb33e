"""What the rivals of METHODS G are to give, one completion at a time in plain Python."""

import math
from fractions import Fraction

from tests.unit.estimator_oracles import Row, Rows, Step, clip01, deviation, each, known, mean, rloo


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


def grpo(row: Row) -> Row:
    spread = deviation(known(row), 1) if len(known(row)) > 1 else 1.0
    centre = mean(known(row)) if len(row) > 1 else 0.0
    return each(row, lambda i, r: (r - centre) / (spread + 1e-6))


def kae(prompt: str, row: Row, steps: list[Step], bandwidth: float, remembered: int) -> Row:
    scored = [groups for groups, _ in steps if any(known(own) for _, own in groups)]
    past = [
        (len(scored) - number, rewards)
        for number, groups in enumerate(scored)
        if (rewards := [r for name, own in groups if name == prompt for r in known(own)])
    ][-remembered:]
    if not past:
        return rloo([row], [])[0]
    weights = [math.exp(-((age / bandwidth) ** 2) / 2) for age, _ in past]
    mass = math.fsum(w * len(rewards) for w, (_, rewards) in zip(weights, past, strict=True))
    baseline = math.fsum(w * math.fsum(rewards) for w, (_, rewards) in zip(weights, past, strict=True)) / mass
    return each(row, lambda i, r: r - baseline)


def v05(prompt: str, row: Row, steps: list[Step], cluster: tuple[float, float, bool]) -> tuple[Row, float]:
    """Advantages and trust. cluster: mean, variance within prompts, whether anything is known of it."""
    of_cluster, within, seen = cluster
    total = count = 0.0
    for groups, _ in steps:
        rewards = [r for name, own in groups if name == prompt for r in known(own)]
        if rewards:
            total, count = total / 2 + math.fsum(rewards), count / 2 + len(rewards)
    value = total / count if count else of_cluster
    centre, noise = mean(known(row)), within / max(len(known(row)), 1)
    doubt = max(1 - noise / (centre - value) ** 2, 0.0) if centre != value else 0.0
    trust = 1 - doubt if seen else 0.0
    return each(row, lambda i, r: r - (trust * value + (1 - trust) * centre)), trust


def ha_dw(rows: Rows, past: list[list[float]]) -> Rows:
    """past: the rewards of each batch before, clipped to [0, 1]."""

    def follow(anchors: list[float], accuracy: float) -> float:
        if not anchors:
            return accuracy
        step = 0.1 * (deviation(anchors, 0) if len(anchors) > 1 else 1.0)
        return anchors[-1] + step * (accuracy - anchors[-1])

    anchors: list[float] = []
    for rewards in past:
        anchors.append(follow(anchors, mean(rewards)))
    everything = [clip01(r) for row in rows for r in known(row)]
    if not everything:
        return rows
    anchor = follow(anchors, mean(everything))
    result = []
    for row in rows:
        p = mean([clip01(r) for r in known(row)])
        result.append(
            each(grpo(row), lambda i, a, p=p: 1.3 * a * math.exp(-math.copysign(p - anchor, a * (p - anchor))))
        )
    return result


def rl_zvp(row: Row, surprisals: Row) -> Row:
    rewards = known(row)
    heard = [s for r, s in zip(row, surprisals, strict=True) if r is not None and s is not None]

    def push(i: int, sign: int) -> float:
        own = surprisals[i]
        if own is None:
            return 0.0
        return 0.1 * own if sign > 0 else -0.1 * (max(heard) - own)

    if all(r >= 1 for r in rewards):
        return each(row, lambda i, r: push(i, 1))
    if all(r <= 0 for r in rewards):
        return each(row, lambda i, r: push(i, -1))
    return grpo(row)


def spo_pp_value(prompt: str, born: int, steps: list[Step], lags: list[list[int]]) -> tuple[float, bool]:
    """The value at dispatch by version `born`, and whether there was any evidence. Step s is trained into version s + 1."""
    halvings = [math.log2(1 / 0.875) if move is None else move / 0.06 for _, move in steps]
    successes = mass = 0.0
    for version, (groups, _) in enumerate(steps[:born]):
        for (name, row), lag in zip(groups, lags[version], strict=False):
            generated = max(version - lag, 0)
            if name == prompt:
                kept = 2.0 ** -math.fsum(halvings[generated:born])
                successes += kept * math.fsum(clip01(r) for r in known(row))
                mass += kept * len(known(row))
    return (successes + 0.5) / (mass + 1.0), mass > 0
