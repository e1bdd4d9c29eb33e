"""The messages of the moments service: what a scored group is, and what is told beside it."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

LARGEST_REWARD = 1e18
"""Moments remember squares of rewards: a larger one would be all that a cluster knows, and soon nothing finite."""
FULL_REWARD = 1.0
"""A completion with at least this reward counts as solved in pass@1."""


class GroupStatus(StrEnum):
    """How a group ended. Only `SCORED` groups are trained on; `LOST` ones still count in history."""

    SCORED = "scored"
    """At least one completion has a reward."""
    ERROR = "error"
    """No completion has a reward: the verifier or the generation failed for each of them."""
    LOST = "lost"
    """Sampled and scored, but its payload died with its actor."""


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """Header of one group: the G completions of one prompt with their rewards. Small; never holds tokens.

    `rewards[i]` is the raw verifier reward, or None where `errors[i]` says why there is none. All tuples have length G.
    """

    group_id: str
    """`prompt_id:epoch:occurrence:attempt`; the key by which everything sent twice is recognised."""
    prompt_id: str
    source: str
    """Where the prompt came from: a task family or a data set."""
    sequence: int
    """Position in the prompt feed; batches are ordered by it."""
    rewards: tuple[float | None, ...]
    errors: tuple[str | None, ...]
    lengths: tuple[int, ...]
    """Tokens of each completion that are trained on."""
    truncated: tuple[bool, ...]
    policy_versions: tuple[int, int]
    """Oldest and newest policy version that sampled a token of this group."""
    turns: tuple[int, ...] = ()
    """Of each completion; left out, one each."""
    prompt_tokens: int = 0
    """Tokens that all completions begin with; with `lengths` and `read` what the group costs a learner. Not kept in the ledger."""
    read: tuple[int, ...] = ()
    """Tokens of each completion that nobody sampled, the prompt's apart: what environments answered. Left out, none."""
    difficulty: str = ""
    """How hard its source says the prompt is; "" where it does not say."""
    parts: tuple[dict[str, float] | None, ...] | None = None
    """Of each completion, what its reward is the sum of, or what stands beside it; None where the verifier says nothing of it."""
    status: GroupStatus = GroupStatus.SCORED

    def __post_init__(self) -> None:
        if not self.turns:
            object.__setattr__(self, "turns", (1,) * len(self.rewards))
        if not self.read:
            object.__setattr__(self, "read", (0,) * len(self.rewards))
        columns = (self.rewards, self.errors, self.lengths, self.truncated, self.turns, self.read)
        sizes = {len(column) for column in columns}
        sizes |= set() if self.parts is None else {len(self.parts)}
        if len(sizes) != 1:
            raise ValueError(
                f"group {self.group_id}: rewards, errors, lengths, truncated, turns, read and parts differ in length: {sizes}"
            )
        for i, (reward, error) in enumerate(zip(self.rewards, self.errors, strict=True)):
            if (reward is None) == (error is None):
                raise ValueError(f"group {self.group_id}: completion {i} needs a reward or an error, and not both")
            if reward is not None and not np.isfinite(reward):
                raise ValueError(f"group {self.group_id}: reward {reward} of completion {i} is not finite")

    @property
    def uniform(self) -> bool:
        """Whether it has two rewards or more, and all of them are equal: no completion is better than another."""
        rewards = [reward for reward in self.rewards if reward is not None]
        return len(rewards) > 1 and len(set(rewards)) == 1


@dataclass(frozen=True, slots=True)
class PolicyMove:
    """How far one policy step moved the policy, measured on the completions that it was trained on; means per token."""

    kl: float
    """KL divergence of the new policy from the old one, in nats."""
    log_ratio: float
    """Absolute log-ratio of new to old, in nats."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """The texts of one group, for people to read; kept in the ledger for the share of groups the config asks for."""

    prompt: str
    completions: tuple[str, ...]
