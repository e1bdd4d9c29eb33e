"""Any log of rewards through any estimator, without a run: what would the advantages have been?"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from moments_service.clusters import PromptSet, fit_clusters
from moments_service.clusters.encoder import PromptEncoder
from moments_service.config import BlendConfig, MomentsConfig
from moments_service.estimators import Advantages, RewardBatch
from moments_service.estimators.grpo import grpo
from moments_service.messages.table import padded
from moments_service.moments import CommittedRewards
from moments_service.progress import Progress, silent
from moments_service.seeding import derive_seed
from moments_service.state import MomentsState
from moments_service.strict import first_problem


class ReplayError(ValueError):
    """A log cannot be read; the message names the line and what is wrong with it."""


class LoggedGroup(BaseModel):
    """One line of a log."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    step: int
    group: Annotated[str, BeforeValidator(str)]
    rewards: tuple[float | bool | None, ...] = Field(min_length=1)
    prompt: str = ""
    cluster: int = -1
    """As the log gives it, or as the codebook assigned it."""
    lengths: tuple[Annotated[int, Field(ge=0)], ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "LoggedGroup":
        if len(self.model_fields_set & {"prompt", "cluster"}) != 1:
            raise ValueError("give either a prompt or a cluster")
        if self.lengths is not None and len(self.lengths) != len(self.rewards):
            raise ValueError(f"there are {len(self.lengths)} lengths of {len(self.rewards)} completions")
        return self

    @property
    def scored(self) -> bool:
        return any(reward is not None for reward in self.rewards)


@dataclass(slots=True)
class ReplaySummary:
    """What an estimator made of a log."""

    groups: int = 0
    with_signal: int = 0
    rescued: int = 0
    """Groups with signal that GRPO would have learned nothing from."""
    magnitudes: list[float] = field(default_factory=list)

    @property
    def signal_ratio(self) -> float:
        return self.with_signal / self.groups if self.groups else math.nan

    @property
    def mean_magnitude(self) -> float:
        return math.fsum(self.magnitudes) / len(self.magnitudes) if self.magnitudes else math.nan

    def add(self, own: Advantages, counterfactual: Advantages) -> None:
        signal, other = own.carries_signal(), counterfactual.carries_signal()
        self.groups += len(signal)
        self.with_signal += int(signal.sum())
        self.rescued += int((signal & ~other).sum())
        self.magnitudes += np.abs(own.values[~np.isnan(own.values)]).tolist()


def read_log(
    lines: Iterable[str], config: MomentsConfig, seed: int = 0, progress: Progress = silent
) -> list[LoggedGroup]:
    """Parse JSON lines {"step", "group", "prompt" | "cluster", "rewards", "lengths"?}, in order of their steps.

    Where lines give prompts, clusters are made of them as in a run; progress: of how many embedded prompts. Raises ReplayError for a line that is wrong.
    """
    groups = [_parse(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not groups:
        raise ReplayError("the log is empty")
    by_prompt = [group for group in groups if "prompt" in group.model_fields_set]
    if by_prompt:
        if len(by_prompt) < len(groups):
            raise ReplayError("some lines give a prompt and others a cluster; give the same in all of them")
        if config.clusters.by != "embedding":
            raise ReplayError(
                f"moments.clusters.by: a log with prompts has no {config.clusters.by}; give clusters instead"
            )
        texts = tuple(sorted({group.prompt for group in groups}))
        unknown = ("",) * len(texts)
        prompts = PromptSet(texts, unknown, unknown, PromptEncoder(config.clusters).encode(texts, progress))
        assigned = fit_clusters(config.clusters, prompts, derive_seed(seed, "codebook")).assign_prompts(prompts)
        clusters = dict(zip(texts, assigned.tolist(), strict=True))
        groups = [group.model_copy(update={"cluster": clusters[group.prompt]}) for group in groups]
    return sorted(groups, key=lambda group: group.step)


def replay(groups: Sequence[LoggedGroup], config: MomentsConfig, summary: ReplaySummary) -> Iterator[dict[str, Any]]:
    """Run a log through the estimator of `config`; one row a group, in the order of the log.

    Groups of one step are a batch: advantages come from the state before it, then it becomes history. Groups without any
    reward are in no batch, as in training.
    """
    numbers = {cluster: row for row, cluster in enumerate(sorted({group.cluster for group in groups}))}
    state = MomentsState(config, len(numbers))
    version = 0
    for step, members in itertools.groupby(groups, key=lambda group: group.step):
        everyone = list(members)
        batch = [group for group in everyone if group.scored]
        results: dict[int, tuple[Advantages, int]] = {}
        if batch:
            clusters = np.array([numbers[group.cluster] for group in batch], dtype=np.int64)
            width = max(len(group.rewards) for group in batch)
            rewards = RewardBatch(
                rewards=padded([group.rewards for group in batch], width, np.nan),
                lengths=padded([group.lengths or (1,) * len(group.rewards) for group in batch], width, 0.0),
                prompts=tuple(group.prompt or f"cluster {group.cluster}" for group in batch),
                history=state.history(clusters),
            )
            own = state.estimate(rewards)
            summary.add(own, grpo(rewards))
            results = {id(group): (own, row) for row, group in enumerate(batch)}
            version += 1
            state.fold(step, CommittedRewards(clusters, rewards.rewards, rewards.prompts, version))
        for group in everyone:
            yield _row(group, config, results.get(id(group)))


def _row(group: LoggedGroup, config: MomentsConfig, result: tuple[Advantages, int] | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "step": group.step,
        "group": group.group,
        "estimator": estimator_label(config),
        "cluster": group.cluster,
        "advantages": [None] * len(group.rewards),
        "baseline": None,
        "scale": None,
        "weight": None,
    }
    if result is not None:
        own, place = result
        values = own.values[place, : len(group.rewards)].tolist()
        row["advantages"] = [None if value != value else value for value in values]
        row |= {
            "baseline": float(own.baseline[place]),
            "scale": float(own.scale[place]),
            "weight": float(own.weight[place]),
        }
    return row


def estimator_label(config: MomentsConfig) -> str:
    """The estimator's name; with its variant where it is not the preset."""
    estimator = config.estimator
    if isinstance(estimator, BlendConfig) and estimator.variant != "safe":
        return f"bv_blend:{estimator.variant}"
    return estimator.kind


def _parse(number: int, line: str) -> LoggedGroup:
    try:
        return LoggedGroup.model_validate_json(line)
    except ValidationError as error:
        raise ReplayError(f"line {number}: {first_problem(error)}") from None
