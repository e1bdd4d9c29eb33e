"""Any log of rewards through any estimator, without a run: what would the advantages have been?"""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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


class ReplayError(ValueError):
    """A log cannot be read; the message names the line and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class LoggedGroup:
    """One line of a log."""

    step: int
    group: str
    prompt: str
    """The prompt's text, or the name of the cluster where the log gives clusters."""
    cluster: int
    """As the log gives it, or as the codebook assigned it."""
    rewards: tuple[float | None, ...]
    lengths: tuple[int, ...]

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
    rows = [_parse(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ReplayError("the log is empty")
    by_prompt = [row for row in rows if "prompt" in row]
    if by_prompt and len(by_prompt) < len(rows):
        raise ReplayError("some lines give a prompt and others a cluster; give the same in all of them")
    if by_prompt:
        texts = tuple(sorted({row["prompt"] for row in rows}))
        if config.clusters.by != "embedding":
            raise ReplayError(
                f"moments.clusters.by: a log with prompts has no {config.clusters.by}; give clusters instead"
            )
        unknown = ("",) * len(texts)
        prompts = PromptSet(texts, unknown, unknown, PromptEncoder(config.clusters).encode(texts, progress))
        assigned = fit_clusters(config.clusters, prompts, derive_seed(seed, "codebook")).assign_prompts(prompts)
        clusters = dict(zip(texts, assigned.tolist(), strict=True))
        for row in rows:
            row["cluster"] = clusters[row["prompt"]]
    groups = [
        LoggedGroup(
            step=row["step"],
            group=row["group"],
            prompt=row.get("prompt", f"cluster {row['cluster']}"),
            cluster=row["cluster"],
            rewards=tuple(row["rewards"]),
            lengths=tuple(row.get("lengths") or [1] * len(row["rewards"])),
        )
        for row in rows
    ]
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
                lengths=padded([group.lengths for group in batch], width, 0.0),
                prompts=tuple(group.prompt for group in batch),
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


def _parse(number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ReplayError(f"line {number} is not JSON: {error}") from None

    def refuse(problem: str) -> ReplayError:
        return ReplayError(f"line {number}: {problem}")

    if not isinstance(row, dict):
        raise refuse("not an object")
    for key in ("step", "group", "rewards"):
        if key not in row:
            raise refuse(f"no {key!r}; a line is {{step, group, prompt | cluster, rewards, lengths?}}")
    if not isinstance(row["step"], int) or isinstance(row["step"], bool):
        raise refuse(f"step: {row['step']!r} is not a whole number")
    row["group"] = str(row["group"])
    if ("prompt" in row) == ("cluster" in row):
        raise refuse("give either a prompt or a cluster")
    if "prompt" in row and not isinstance(row["prompt"], str):
        raise refuse(f"prompt: {row['prompt']!r} is not a text")
    if "cluster" in row and (not isinstance(row["cluster"], int) or isinstance(row["cluster"], bool)):
        raise refuse(f"cluster: {row['cluster']!r} is not a whole number")
    rewards, lengths = row["rewards"], row.get("lengths")
    if not isinstance(rewards, list) or not rewards:
        raise refuse(f"rewards: {rewards!r} is not a list of numbers or nulls")
    for reward in rewards:
        if reward is not None and not (isinstance(reward, int | float) and math.isfinite(reward)):
            raise refuse(f"rewards: {reward!r} is neither a finite number nor null")
    if lengths is not None and (
        not isinstance(lengths, list)
        or len(lengths) != len(rewards)
        or any(not isinstance(length, int) or length < 0 for length in lengths)
    ):
        raise refuse(f"lengths: {lengths!r} is not a list of {len(rewards)} token counts")
    return row
