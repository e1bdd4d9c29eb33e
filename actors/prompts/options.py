"""What a user can set about prompts: where they come from, and in which order they are dealt."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from actors.prompts.curricula.options import AnyCurriculum, StepsCurriculum
from actors.verifiers.options import AnyVerifier
from moments_service.config import StrictModel
from moments_service.paths import PathText
from moments_service.suggestions import nearest

OURS = frozenset(
    [
        "conversation",
        "messages",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "tokenizer_kwargs",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
    ]
)
"""Of what a tokenizer's `apply_chat_template` can be told: what this project says, or relies on being left alone."""


class _Source(StrictModel):
    name: str
    """What this source is called in every table; unique in a recipe."""
    limit: int | None = Field(None, ge=1)
    """At most this many training prompts, after duplicates are dropped."""
    held_out: int = Field(0, ge=0)
    """How many further prompts are set aside for evaluation and never trained on."""
    weight: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Its share of the feed in proportion to the others' weights, however many prompts it has; all sources name one, or none does."""
    template: str = "{question}"
    """The prompt's text around the question; `{row.NAME}` is another column of the row."""
    system: str | None = None
    """What the system says before the prompt, where its conversation has no such message; needs `prompts.chat`."""
    verifier: AnyVerifier | None = None
    """What judges its completions: a verifier by name, `kind` with the options of that one, or `module:callable` (docs/verifiers.md); the source's own if left out."""


class ReasoningGymSource(_Source):
    """Prompts made by a reasoning-gym task; scored by the task's own scorer."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    task: str
    """Name of the reasoning-gym task."""
    params: dict[str, Any] = Field(default_factory=dict)
    """The task's own settings."""
    fresh: bool = False
    """No prompt comes twice: as many are made as the run can deal of it, in place of `limit`."""
    seed: int = 0
    """Seed of the task's generator; fixed, so that every run sees the same pool."""
    question_pattern: str | None = None
    """Regular expression whose first group is the part of the question to keep (some tasks carry long examples)."""
    shots: int = Field(0, ge=0)
    """How many solved examples, made by the same task, stand before the question."""
    max_prompt_chars: int | None = None
    """Longer prompts are left out."""
    max_answer_chars: int | None = None
    """Prompts whose answer is longer are left out."""
    partial_credit: bool = False
    """Keep the scorer's fractions; otherwise a reward is 1 for a full score and 0 for anything less."""


class _FileSource(_Source):
    path: PathText
    """The file, relative to the recipe."""
    question_field: str = "question"
    """Column with the prompt's text, or with a conversation, a list of `role` and `content`; `a.b` is the entry `b` of a column `a`, in every `_field`."""
    answer_field: str | None = "answer"
    """Column with the gold answer, of which the part after a last `####` counts where there is one; null where there is none."""
    source_field: str | None = None
    """Column that names each row's own source; the source's name if left out."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """A row that cannot be used ends everything before it starts, or is left out and counted in a warning."""


class JsonlSource(_FileSource):
    """Prompts from a JSON-lines file; GSM8K's `question` / `answer` lines read as they are."""

    kind: Literal["jsonl"] = "jsonl"


class CsvSource(_FileSource):
    """Prompts from a CSV file whose first row names the columns."""

    kind: Literal["csv"] = "csv"
    delimiter: str = Field(",", min_length=1, max_length=1)
    """What stands between two columns."""


class ParquetSource(_FileSource):
    """Prompts from a parquet file."""

    kind: Literal["parquet"] = "parquet"


class DatasetSource(_FileSource):
    """Prompts from a Hugging Face dataset, read with the library `datasets`."""

    kind: Literal["dataset"] = "dataset"
    path: PathText
    """A directory (of `save_to_disk`, or of data files), relative to the recipe, or a name on the hub."""
    split: str = "train"
    """Which of its splits."""
    subset: str | None = None
    """Which of its configurations, where it has several (`main` of openai/gsm8k)."""


FileSource = JsonlSource | CsvSource | ParquetSource | DatasetSource
Source = Annotated[ReasoningGymSource | FileSource, Field(discriminator="kind")]


class PromptConfig(StrictModel):
    """Which prompts a run trains on and is evaluated on."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Where prompts come from, one entry a task or file."""
    order: Literal["shuffled", "signal", "mopps", "greso", "kalman"] = "shuffled"
    """`shuffled` deals every prompt once an epoch; `signal` deals more from clusters where completions of one prompt differ, and leaves no prompt out; the others go by how each prompt's groups came out (docs/prompt_sampling.md)."""
    curriculum: AnyCurriculum | None = None
    """Whether the shares of sources change during a run: by `steps`, or by `pass_rate` (docs/data.md)."""
    filter: Literal["none", "dapo"] = "none"
    """`dapo`: a group of equal rewards counts in history but is not trained on; the next prompt takes its place."""
    generation_batches: int = Field(3, ge=2)
    """Dapo: a step samples at most so many batches; groups of equal rewards in the last one are trained on as they are."""
    chat: bool = False
    """Wrap every prompt as a user message in the tokenizer's chat template."""
    chat_options: dict[str, Any] = Field(default_factory=dict)
    """What the chat template is told besides: `enable_thinking: false`, or whatever else it knows."""
    max_tokens: int = Field(512, ge=1)
    """Longer prompts are refused before anything starts."""
    too_long: Literal["refuse", "skip"] = "refuse"
    """`skip` leaves prompts of more than `max_tokens` out instead, and a warning says how many."""

    @field_validator("chat_options")
    @classmethod
    def _options_are_the_templates(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(OURS & value.keys()):
            raise ValueError(f"{taken[0]} is set for every run; name only what the template itself knows")
        return value

    @model_validator(mode="after")
    def _all_have_a_weight_or_none(self) -> "PromptConfig":
        without = [source.name for source in self.sources if source.weight is None]
        if without and len(without) < len(self.sources):
            raise ValueError(
                f"source `{without[0]}` has no `weight`, but others have; give every source one, or none (docs/data.md)"
            )
        return self

    @model_validator(mode="after")
    def _the_curriculum_is_of_the_sources(self) -> "PromptConfig":
        if self.curriculum is None:
            return self
        names = [source.name for source in self.sources]
        for name in self.curriculum.mentioned():
            if name not in names:
                raise ValueError(f"curriculum: no source is called `{name}`{nearest(name, names)}")
        dealt = self.curriculum.names()
        for source in self.sources:
            if source.name not in dealt:
                raise ValueError(f"curriculum: source `{source.name}` is never dealt; name it, or leave the source out")
            if source.weight is not None and isinstance(self.curriculum, StepsCurriculum):
                raise ValueError(
                    f"curriculum: its stages say every weight; leave `weight` out of source `{source.name}`"
                )
        return self

    @model_validator(mode="after")
    def _fresh_sources_can_be_counted(self) -> "PromptConfig":
        for source in self.sources:
            if source.name not in fresh_sources(self):
                continue
            if source.limit is not None:
                raise ValueError(
                    f"source `{source.name}` is fresh, so it has as many prompts as the run deals; leave `limit` out"
                )
            if len(self.sources) > 1 and source.weight is None and self.curriculum is None:
                raise ValueError(
                    f"source `{source.name}` is fresh, and how many prompts it needs depends on its share; "
                    "give every source a `weight`, or set prompts.curriculum"
                )
        return self

    @model_validator(mode="after")
    def _a_system_needs_a_chat(self) -> "PromptConfig":
        if self.chat:
            return self
        if self.chat_options:
            raise ValueError("chat_options are for the chat template; set prompts.chat to true")
        for source in self.sources:
            if source.system is not None:
                raise ValueError(f"source `{source.name}` has a `system`, which needs prompts.chat: true")
        return self


def fresh_sources(config: PromptConfig) -> frozenset[str]:
    """Names of those whose prompts come once each in a run."""
    return frozenset(
        source.name for source in config.sources if isinstance(source, ReasoningGymSource) and source.fresh
    )
