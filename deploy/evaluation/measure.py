"""What the samples of prompts come to: every estimate of k, each with how sure it is; samples without a reward are in none."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actors.prompts.prompt import Prompt
from actors.rollout.evaluated import EvaluatedGroup
from deploy.evaluation.estimates import g_pass_at_k, maj_at_k, mg_pass_at_k, pass_at_k, pass_hat_k
from deploy.evaluation.intervals import bootstrap_interval, exact_interval, sampling_error, t_interval
from deploy.rundir.evaluation import Evaluation
from moments_service.messages.groups import FULL_REWARD

HALF = 0.5
"""The share of right samples that G-Pass@k is measured at, besides all of them, which is pass^k."""


@dataclass(frozen=True, slots=True)
class Measured:
    """An estimate's mean over prompts, with intervals at 95 %: were other prompts asked."""

    mean: float
    low: float | None
    """By Student's t over prompts, within [0, 1]; None for fewer than two."""
    high: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None
    prompts: int
    """Those with as many judged samples as it needs."""
    exact_low: float | None = None
    """By `exact_interval`, which also holds where successes or failures are rare; None for fewer than two."""
    exact_high: float | None = None
    sampling_error: float | None = None
    """Of pass@1: its standard error on these very prompts, were only their samples drawn anew."""


def measure(prompts: Sequence[Prompt], groups: Sequence[EvaluatedGroup]) -> Evaluation:
    """What an evaluation during training says. groups: of each prompt."""
    shares = [share_of(group) for group in groups]
    by_source: dict[str, list[float]] = defaultdict(list)
    for prompt, share in zip(prompts, shares, strict=True):
        if share is not None:
            by_source[prompt.source].append(share)
    known = [share for share in shares if share is not None]
    by_t = t_interval(known)
    exact = (
        exact_interval(known, mean([len(judged) for group in groups if (judged := solved(group))])) if known else None
    )
    lengths = [length for group in groups for length in group.lengths]
    return Evaluation(
        pass_at_1=mean(known) if known else None,
        sources={source: mean(of_source) for source, of_source in sorted(by_source.items())},
        prompts=len(prompts),
        errors=sum(reward is None for group in groups for reward in group.rewards),
        low=None if exact is None else exact.low,
        high=None if exact is None else exact.high,
        half_width=None if by_t is None else by_t.half,
        pass_at_k={str(k): one.mean for k in depths(groups)[1:] if (one := _over(groups, _by_counts(pass_at_k, k), k))},
        maj_at_k={
            str(k): mean([_majority(group, k) for group in enough])
            for k in depths(groups)[1:]
            if (enough := [group for group in groups if len(solved(group)) >= k])
        },
        length=mean(lengths) if lengths else None,
        truncated=mean([float(cut) for group in groups for cut in group.truncated]) if lengths else None,
    )


def measures(groups: Sequence[EvaluatedGroup]) -> dict[str, Measured]:
    """Every estimate that these samples allow, by its name with its k: pass@1, pass@4, pass^4, maj@4, g-pass@4, mg-pass@4, …

    pass@1 is avg@n: the mean over all n samples of a prompt. g-pass is at half of the samples.
    """
    found = {"pass@1": _over(groups, lambda group: share_of(group) or 0.0, 1, whole=True)}
    for k in depths(groups)[1:]:
        found[f"pass@{k}"] = _over(groups, _by_counts(pass_at_k, k), k)
        found[f"pass^{k}"] = _over(groups, _by_counts(pass_hat_k, k), k)
        found[f"maj@{k}"] = _over(groups, lambda group, k=k: _majority(group, k), k, several=False)  # type: ignore[misc]
        if k <= 2:  # there g-pass is pass@k, and mg-pass pass^k
            continue
        found[f"g-pass@{k}"] = _over(groups, _by_counts(lambda n, c, k: g_pass_at_k(n, c, k, HALF), k), k)
        found[f"mg-pass@{k}"] = _over(groups, _by_counts(mg_pass_at_k, k), k)
    return {name: one for name, one in found.items() if one is not None}


def depths(groups: Sequence[EvaluatedGroup]) -> list[int]:
    """The k that are shown: powers of two up to the most samples of a prompt, and that number itself."""
    most = max((len(group.rewards) for group in groups), default=1)
    return sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most, 1})


def solved(group: EvaluatedGroup) -> list[float]:
    """1 or 0 for each judged sample."""
    return [float(reward >= FULL_REWARD) for reward in group.rewards if reward is not None]


def _over(
    groups: Sequence[EvaluatedGroup],
    estimate: Callable[[EvaluatedGroup], float],
    k: int,
    whole: bool = False,
    several: bool = True,
) -> Measured | None:
    """The mean over the prompts that have k judged samples; None without one.

    whole: of pass@1.    several: whether the estimate is of all samples, and not of the first k.
    """
    enough = [group for group in groups if len(solved(group)) >= k]
    if not enough:
        return None
    values = [estimate(group) for group in enough]
    by_t, by_bootstrap = t_interval(values), bootstrap_interval(values)
    exact = exact_interval(values, mean([len(solved(group)) for group in enough]) / k if several else 1.0)
    return Measured(
        mean=math.fsum(values) / len(values),
        low=None if by_t is None else max(by_t.low, 0.0),
        high=None if by_t is None else min(by_t.high, 1.0),
        bootstrap_low=None if by_bootstrap is None else by_bootstrap.low,
        bootstrap_high=None if by_bootstrap is None else by_bootstrap.high,
        prompts=len(enough),
        exact_low=None if exact is None else exact.low,
        exact_high=None if exact is None else exact.high,
        sampling_error=sampling_error([solved(group) for group in enough]) if whole else None,
    )


def _by_counts(estimate: Callable[[int, int, int], float], k: int) -> Callable[[EvaluatedGroup], float]:
    return lambda group: estimate(len(solved(group)), int(sum(solved(group))), k)


def _majority(group: EvaluatedGroup, k: int) -> float:
    judged = [i for i, reward in enumerate(group.rewards) if reward is not None]
    right = [bool(value) for value in solved(group)]
    return maj_at_k([group.answers[i] for i in judged], right, k)


def share_of(group: EvaluatedGroup) -> float | None:
    """Of its judged samples, how many are right; None where none is judged."""
    judged = solved(group)
    return mean(judged) if judged else None


def mean(values: Sequence[float]) -> float:
    """Of one value or more."""
    return sum(values) / len(values)
