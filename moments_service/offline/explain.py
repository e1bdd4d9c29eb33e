"""Why a group got the advantages it got: every number behind them, and the same numbers computed again."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moments_service.config import MomentsConfig
from moments_service.estimators.grpo import grpo
from moments_service.history import configured
from moments_service.ledger import LedgerReader
from moments_service.messages.groups import ScoredGroup, Transcript
from moments_service.messages.table import GroupTable
from moments_service.offline.rebuild import rebuild


class GroupNotFoundError(LookupError):
    """The ledger holds no such group."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Advantages of one group, None where there was no reward, and what they are made of: A = (r - baseline) / scale."""

    advantages: tuple[float | None, ...]
    baseline: float
    scale: float
    weight: float


@dataclass(frozen=True, slots=True)
class ClusterPast:
    """The moments of the group's cluster before its batch."""

    mean: float
    variance: float
    mass: float
    seen: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything the ledger knows of one group. The last four are None for a group that was never trained on."""

    config: MomentsConfig
    """What the run was configured with when the group was sampled."""
    group: ScoredGroup
    incarnation: int
    cluster: int
    step: int | None
    """The step that folded it into history; None if none did."""
    parts: tuple[dict[str, float] | None, ...] | None
    """What its rewards are made of, where the verifier says."""
    texts: Transcript | None
    """Prompt and completions, if they were kept."""
    texts_dropped: bool
    """Whether retention dropped them, if they were kept at first."""
    recorded: Numbers | None
    """What the ledger says the learner was given."""
    recomputed: Numbers | None
    """The same from the rewards in the ledger alone."""
    grpo: Numbers | None
    """What GRPO would have made of the group."""
    past: ClusterPast | None


def explain(config: MomentsConfig, directory: Path, group_id: str) -> list[Explanation]:
    """Explain every time that the group was submitted; oldest incarnation first.

    config: of the run, for what an older version wrote.    directory: of the ledger. Raises GroupNotFoundError for an id that is not in it.
    """
    with LedgerReader(directory) as reader:
        found = reader.find(group_id)
        if not found:
            raise GroupNotFoundError(
                f"the ledger in {directory} holds no group {group_id}; an id is prompt:epoch:occurrence:attempt"
            )
        return [_explain(config, directory, reader, *entry) for entry in found]


def _explain(
    config: MomentsConfig,
    directory: Path,
    reader: LedgerReader,
    incarnation: int,
    group: ScoredGroup,
    cluster: int,
    step: int | None,
) -> Explanation:
    config = configured(reader, incarnation, config)
    own = (incarnation, group.sequence, group.group_id)
    parts = reader.reward_parts([own]).get(own)
    texts, dropped = reader.transcript(*own), reader.texts_were_dropped(*own)
    batch = [] if step is None else [entry for entry in reader.batch(incarnation, step) if entry.advantages is not None]
    row = next((row for row, entry in enumerate(batch) if entry.group.group_id == group.group_id), None)
    if row is None:
        return Explanation(config, group, incarnation, cluster, step, parts, texts, dropped, None, None, None, None)
    assert step is not None
    table = GroupTable.of([entry.group for entry in batch])
    state = rebuild(config, directory, incarnation, before_step=step).state
    assert state is not None
    rewards = state.reward_batch(table, np.array([entry.cluster for entry in batch]))
    history = rewards.history

    def numbers(values: np.ndarray, baseline: np.ndarray, scale: np.ndarray, weight: np.ndarray) -> Numbers:
        own = values[row, : len(group.rewards)].tolist()
        return Numbers(
            tuple(None if value != value else value for value in own),
            float(baseline[row]),
            float(scale[row]),
            float(weight[row]),
        )

    blended, other = state.estimate(rewards), grpo(rewards)
    entry = batch[row]
    assert entry.advantages is not None and entry.baseline is not None
    assert entry.scale is not None and entry.weight is not None
    return Explanation(
        config=config,
        group=group,
        incarnation=incarnation,
        cluster=cluster,
        step=step,
        parts=parts,
        texts=texts,
        texts_dropped=dropped,
        recorded=Numbers(entry.advantages, entry.baseline, entry.scale, entry.weight),
        recomputed=numbers(blended.values, blended.baseline, blended.scale, blended.weight),
        grpo=numbers(other.values, other.baseline, other.scale, other.weight),
        past=ClusterPast(
            float(history.mean[row]), float(history.variance[row]), float(history.mass[row]), bool(history.seen[row])
        ),
    )
