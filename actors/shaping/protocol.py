"""What a shaping rule takes and gives. It changes what the learner optimises, and nothing that the moments remember."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from actors.rollout.sample import Sample
from moments_service.blend import Array
from moments_service.config import StrictModel
from moments_service.messages.batch import Batch
from moments_service.messages.groups import FULL_REWARD


@dataclass(frozen=True, slots=True)
class ShapingBatch:
    """What a rule sees of a batch: M groups of up to G completions, in feed order.

    rewards: [M, G] raw verifier rewards, NaN where a completion has none.    lengths: [M, G] sampled tokens, as floats.
    truncated: [M, G], whether a length limit ended the completion.    prompts: M prompt ids.    step: that trains on the batch.
    max_tokens: most tokens that a completion may have.    observed: [M, G] by kind, what a rule saw of the completions where they were
    sampled, NaN where it saw nothing.
    """

    rewards: Array
    lengths: Array
    truncated: npt.NDArray[np.bool_]
    prompts: tuple[str, ...]
    step: int
    max_tokens: int
    observed: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch, max_tokens: int, observed: Mapping[str, Array] | None = None) -> "ShapingBatch":
        """Of what the moments service drew."""
        table = batch.table
        lengths = table.lengths.astype(np.float64)
        return cls(table.rewards, lengths, table.truncated, table.prompt_ids, batch.step, max_tokens, observed or {})

    @property
    def scored(self) -> npt.NDArray[np.bool_]:
        """[M, G]: whether there is a reward."""
        return ~np.isnan(self.rewards)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """[M, G]: whether the raw reward is a full one, as in pass@1."""
        return np.where(self.scored, self.rewards, -np.inf) >= FULL_REWARD


@dataclass(frozen=True, slots=True)
class Shaped:
    """What a rule makes of a batch.

    rewards: [M, G] in the place of the raw ones, NaN where those are.    weights: [M, G] factors of the advantages, None for 1.
    alone: whether advantages are of these rewards only, and the moments have no part in them.    metrics: what it has to say of itself,
    by name.
    """

    rewards: Array
    weights: Array | None = None
    alone: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


class Rule(Protocol):
    """Shapes the rewards of a batch. Calling it changes nothing."""

    def __call__(self, batch: ShapingBatch) -> Shaped: ...


@runtime_checkable
class RememberingRule(Protocol):
    """A rule with a memory of its own, which is saved and restored with the run."""

    def __call__(self, batch: ShapingBatch) -> Shaped: ...

    def learn(self, batch: ShapingBatch) -> None:
        """Take one batch in, after its policy step, exactly once."""
        ...

    def state(self) -> dict[str, Any]:
        """All that it goes by, as JSON."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        ...


class ShapingOptions(StrictModel):
    """What one can set about a rule. Each kind has its own, beside it."""

    kind: str
    by_length: ClassVar[bool] = True
    """Whether it answers to the lengths of completions."""
    by_correctness: ClassVar[bool] = True
    """Whether it goes by which of them are right."""

    def create(self) -> Rule | RememberingRule:
        """The rule with these options, its memory empty."""
        raise NotImplementedError


class Guarded(ShapingOptions):
    """A rule whose length term may be kept to right answers."""

    applies_to: Literal["correct", "all"] = "correct"
    """Whose length counts: `correct` those of right answers alone, a guard against learning from how long wrong ones are; `all` as the source has it."""

    def whom(self, batch: ShapingBatch) -> npt.NDArray[np.bool_]:
        """[M, G]: completions whose length counts."""
        return batch.correct if self.applies_to == "correct" else batch.scored


class Limited(ShapingOptions):
    """A rule that goes by a longest length."""

    max_tokens: int | None = Field(None, ge=1)
    """The longest length that the rule goes by; `sampling.max_tokens` if left out."""

    def limit(self, batch: ShapingBatch) -> int:
        """In tokens."""
        return self.max_tokens or batch.max_tokens


class Watching(ShapingOptions):
    """A rule that goes by what only the rollout actor has of a completion: its tokens and its text. One number each travels to the driver."""

    def observe(self, sample: Sample, text: str) -> float:
        """What the rule wants to know. text: hostile input."""
        raise NotImplementedError


class Budgeted(Guarded):
    """A rule that tells the policy in its prompt how many tokens it may have, or should."""

    tell: str = " Think for {budget} tokens."
    """What is put after the prompt's text, with `{budget}` where the number stands; empty tells nothing."""

    @field_validator("tell")
    @classmethod
    def _can_be_told(cls, tell: str) -> str:
        if tell and "{budget}" not in tell:
            raise ValueError(f"{tell!r} does not say where the budget stands; write {{budget}} there")
        return tell

    def budget(self, group_id: str, version: int, seed: int) -> int:
        """Tokens that the completions of a group are told of. version: of the policy that is asked.    seed: the run's."""
        raise NotImplementedError

    @property
    def largest_budget(self) -> int:
        """In tokens."""
        raise NotImplementedError

    def told(self, text: str, budget: int) -> str:
        """A prompt's text with its budget."""
        return text + self.tell.replace("{budget}", str(budget))
