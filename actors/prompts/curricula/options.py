"""What a user can set about how the shares of sources change during a run."""

import itertools
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from moments_service.config import StrictModel


class Stage(StrictModel):
    """From one policy step to that of the next stage."""

    from_step: int = Field(ge=0)
    """The first step whose groups are shared out so."""
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=1)
    """Each source's share in proportion to the others'; a source with 0, or that is left out, is not dealt."""

    @field_validator("weights")
    @classmethod
    def _somebody_is_dealt(cls, value: dict[str, float]) -> dict[str, float]:
        if not any(value.values()):
            raise ValueError("every weight is 0; give one source more")
        return value


class StepsCurriculum(StrictModel):
    """Weights of sources by policy step."""

    kind: Literal["steps"] = "steps"
    stages: tuple[Stage, ...] = Field(min_length=1)
    """What holds from which step on; the first begins at step 0."""

    @model_validator(mode="after")
    def _stages_follow_each_other(self) -> "StepsCurriculum":
        steps = [stage.from_step for stage in self.stages]
        if steps[0] != 0:
            raise ValueError(
                f"the first stage is from_step {steps[0]}; nothing is said of the steps before, begin at 0"
            )
        for before, after in itertools.pairwise(steps):
            if after <= before:
                raise ValueError(f"a stage from_step {after} comes behind one from_step {before}; order them by step")
        return self

    def names(self) -> list[str]:
        """Sources that are dealt at some time."""
        return list(dict.fromkeys(name for stage in self.stages for name, weight in stage.weights.items() if weight))

    def mentioned(self) -> list[str]:
        """Sources that it speaks of."""
        return [name for stage in self.stages for name in stage.weights]


class PassRateCurriculum(StrictModel):
    """From easy sources to hard ones, as fast as the policy learns them."""

    kind: Literal["pass_rate"] = "pass_rate"
    levels: tuple[tuple[str, ...], ...] = Field(min_length=1)
    """Names of sources, a list a level, from easy to hard; within a level they share by `weight`, equally without."""
    advance_at: float = Field(0.7, gt=0, le=1)
    """The next level begins where this share of the samples of the last `window` groups of the level was right (parts count)."""
    window: int = Field(64, ge=1)
    """How many groups of the level that is counted over; before as many came back it does not advance."""
    review: float = Field(0.2, ge=0, lt=1)
    """Share of the feed that goes to former levels."""

    @field_validator("levels")
    @classmethod
    def _each_source_is_in_one_level(cls, value: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        if not all(value):
            raise ValueError("a level without a source; name one, or leave the level out")
        names = [name for level in value for name in level]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"source `{name}` is named twice; put it into one level")
        return value

    def names(self) -> list[str]:
        """Sources that are dealt at some time."""
        return [name for level in self.levels for name in level]

    def mentioned(self) -> list[str]:
        """Sources that it speaks of."""
        return self.names()


AnyCurriculum = Annotated[StepsCurriculum | PassRateCurriculum, Field(discriminator="kind")]
