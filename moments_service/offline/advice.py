"""What a log of rewards advises the next run to do: estimator, group size, clusters; and where history cannot help it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from moments_service.config import MomentsConfig
from moments_service.offline.logged_rewards import LoggedRewards
from moments_service.offline.logs import LogError
from moments_service.offline.signal_table import BATCH_MEAN, CHAINS, GROUP_ALONE, SIZES, SignalTable, signal_table
from moments_service.offline.variance_components import Estimate, VarianceComponents

ENOUGH = 0.9
"""The smallest group size is advised at which the best estimator has this share of what it has at the best size: what is missing
is not worth fewer prompts."""
WORTH_IT = 0.02
"""A smaller gain is none, however sure."""
NEVER_WORSE = ("hierarchical", *GROUP_ALONE)
"""Of those who are as good as the best, the first here is advised."""


@dataclass(frozen=True, slots=True)
class LogContents:
    """What a log holds. NaN: it does not say."""

    groups: int
    completions: int
    steps: int
    prompts: int | None
    """None where it says clusters, and no prompts."""
    clusters: int
    group_size: int
    """The median one."""
    mean_reward: float
    drift: float
    """What a step added to it."""
    uniform: float
    """Share of the groups of several rewards in which all are equal."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What was found in a log, and what follows."""

    log: LogContents
    within: Estimate
    between: Estimate
    across: Estimate
    rho: Estimate
    """Share of the variance of a cluster's rewards that lies between its prompts."""
    explained: Estimate
    """Share of the variance between prompts that lies between clusters."""
    explained_shuffled: float
    explained_by_source: Estimate | None
    """The same of the prompts' sources, where the log says them and they are not the clusters."""
    persistence: Estimate
    """Share of the variance between a cluster's prompts that a prompt's own last visit would tell."""
    rho_by_cluster: tuple[float, ...]
    table: SignalTable | None
    """None where no reward differs from any other."""
    group_size: int | None
    """That is advised; None without a table."""
    estimator: str | None
    """The one for groups of that size."""
    estimator_at_own_size: str | None
    """The one for groups of the log's size."""
    history_helps: bool
    """At the log's own group size, beyond the interval."""
    reasons: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and texts; NaN is None."""
        table = None if self.table is None else _cells(self.table)
        return _plain({**asdict(replace(self, table=None)), "table": table})


def advise(
    log: LoggedRewards, config: MomentsConfig, seed: int = 0, sizes: Sequence[int] = SIZES, chains: int = CHAINS
) -> Advice:
    """config: of the run that may come; its estimator is compared too.    sizes, chains: of the table.

    Raises LogError for a log that cannot tell how the rewards of one prompt vary.
    """
    if not len(log.steps):
        raise LogError("no completion in the log has a reward; there is nothing to learn from it")
    components = VarianceComponents(log, seed)
    if np.isnan(components.of_log.within):
        raise LogError(
            "the log has one completion a group, and no prompt twice among few steps: how the rewards of one prompt vary "
            "cannot be told; log groups of two or more"
        )
    contents = _contents(log)
    size = contents.group_size
    table = None
    if components.of_log.within > 0:
        table = signal_table(components, config, sorted({*sizes, size}), chains, seed)
    found = Advice(
        log=contents,
        within=components.estimate(lambda spread: spread.within),
        between=components.estimate(lambda spread: spread.between),
        across=components.estimate(lambda spread: spread.across),
        rho=components.estimate(lambda spread: spread.rho),
        explained=components.estimate(lambda spread: spread.explained),
        explained_shuffled=components.shuffled_explained,
        explained_by_source=_by_source(log, seed),
        persistence=components.estimate(lambda spread: spread.persistence),
        rho_by_cluster=tuple(components.by_cluster().rho.tolist()),
        table=table,
        group_size=None,
        estimator=None,
        estimator_at_own_size=None,
        history_helps=False,
        reasons=(),
    )
    if table is None:
        return replace(
            found, reasons=("All completions of a prompt got the same reward: no baseline makes a signal of that.",)
        )
    helps, about_history = _history(found, table, size)
    advised = _smallest_size(table)
    about_size = [_about_size(table, advised, size)] if len(table.sizes) > 1 else []
    return replace(
        found,
        group_size=advised,
        estimator=_choice(table, advised),
        estimator_at_own_size=_choice(table, size),
        history_helps=helps,
        reasons=(about_history, *about_size, *_about_clusters(found), *_about_prompts(found)),
    )


def _contents(log: LoggedRewards) -> LogContents:
    return LogContents(
        groups=len(log.steps),
        completions=int(log.sizes.sum()),
        steps=len(np.unique(log.steps)),
        prompts=int(log.prompts.max()) + 1 if log.prompts_known else None,
        clusters=int(log.clusters.max()) + 1,
        group_size=int(np.median(log.sizes)),
        mean_reward=float(np.nanmean(log.rewards)),
        drift=log.drift(),
        uniform=log.uniform_share(),
    )


def _by_source(log: LoggedRewards, seed: int) -> Estimate | None:
    if log.sources is None or len(np.unique(log.sources)) < 2 or np.array_equal(log.sources, log.clusters):
        return None
    return VarianceComponents(replace(log, clusters=log.sources), seed).estimate(lambda spread: spread.explained)


def _history(found: Advice, table: SignalTable, size: int) -> tuple[bool, str]:
    """Whether history gains anything at the log's own group size, and the sentence."""
    remembering = [name for name in table.estimators if name not in (*GROUP_ALONE, BATCH_MEAN)]
    best, plain = _choice(table, size, remembering), table.best(size, [*GROUP_ALONE, BATCH_MEAN])
    gain = table.gain(best, plain, size)
    more = "more" if gain.value >= 0 else "less"
    measured = (
        f"{best} has {abs(gain.value):.0%} ± {gain.margin:.0%} {more} effective signal than {plain} at groups of {size}"
    )
    if gain.value > WORTH_IT and gain.low > 0:
        return True, f"History helps: {measured}."
    why = (
        f"no baseline can gain more than {size / (size - 1) - 1:.0%} over rloo there"
        if size >= 8
        else f"prompts of one cluster differ (rho {found.rho.value:.2f})"
    )
    return False, f"History will not help you here: {measured}; {why}."


def _smallest_size(table: SignalTable) -> int:
    most = {size: table.of(table.best(size), size).value for size in table.sizes}
    return next(size for size in table.sizes if most[size] >= ENOUGH * max(most.values()))


def _choice(table: SignalTable, size: int, among: Sequence[str] | None = None) -> str:
    """The best, or one that is never worse and as good within the interval."""
    best = table.best(size, among)
    for name in NEVER_WORSE:
        if name in (among or table.estimators):
            behind = table.gain(best, name, size)
            if behind.value <= WORTH_IT + max(behind.margin, 0.0):
                return name
    return best


def _about_size(table: SignalTable, advised: int, size: int) -> str:
    best = _choice(table, advised)
    of, own = table.of(best, advised), table.of(_choice(table, size), size)
    sentence = (
        f"Of the same number of completions, groups of {advised} with {best} keep {of.value:.0%} ± {of.margin:.0%} of a perfect "
        "baseline's signal"
    )
    if advised == size:
        return f"{sentence}; other sizes promise no more."
    more = "from more prompts" if advised < size else "from fewer prompts"
    return f"{sentence}, {more}; groups of {size} {own.value:.0%} ± {own.margin:.0%}."


def _about_clusters(found: Advice) -> list[str]:
    if found.log.clusters < 2 or np.isnan(found.explained.value):
        return []
    explains = (
        f"explain {found.explained.value:.0%} ± {found.explained.margin:.0%} of what differs between prompts "
        f"({found.explained_shuffled:.0%} when shuffled)"
    )
    if found.explained.low <= found.explained_shuffled:
        sentence = f"The {found.log.clusters} clusters {explains}: as far as this log shows no more than chance; take others, or one."
    else:
        sentence = f"The {found.log.clusters} clusters {explains}."
    by_source = found.explained_by_source
    if by_source is not None and by_source.low > found.explained.value:
        sentence += (
            f" The prompts' sources would explain {by_source.value:.0%} ± {by_source.margin:.0%}: cluster by source."
        )
    return [sentence]


def _about_prompts(found: Advice) -> list[str]:
    if np.isnan(found.persistence.value) or found.log.prompts is None:
        return []
    visits = found.log.groups / found.log.prompts
    return [
        f"A prompt comes {visits:.1f} times, and its own last visit tells {found.persistence.value:.0%} of what its cluster leaves open."
    ]


def _cells(table: SignalTable) -> list[dict[str, Any]]:
    return [
        {"estimator": name, "group_size": size, **asdict(table.of(name, size))}
        for name in table.estimators
        for size in table.sizes
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
