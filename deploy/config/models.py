"""The whole configuration of a run, composed from the floors' own."""

from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from actors.config import RewardsConfig, RolloutConfig, SamplingConfig
from actors.engines.adapter_plan import LARGEST_RANK
from actors.engines.kinds import VllmConfig
from actors.environments.registry import EnvironmentConfig
from actors.environments.single_turn import SingleTurnConfig
from actors.prompts.group_sizes import SMALLEST
from actors.prompts.options import PromptConfig
from actors.redaction import is_signed
from actors.shaping import Rules
from actors.shaping.check import Circumstances, refuse_senseless_shaping
from actors.verifiers.options import Code, Weighted
from actors.verifiers.service_options import Http, Judge
from actors.weights.registry import TransportConfig
from actors.weights.shared_memory import SharedMemoryConfig
from learner.config import LearnerConfig
from learner.soundness import refuse_ratios_to_a_cut_sampler, refuse_uncorrected_staleness
from moments_service.config import MomentsConfig, StrictModel
from moments_service.estimators.teaching import can_teach
from moments_service.paths import PathText
from moments_service.suggestions import nearest


class EvaluationConfig(StrictModel):
    """When and how pass@1 is measured apart from training."""

    every: int = Field(0, ge=0)
    """Evaluate on held-out prompts every so many steps; 0 only at the start and the end."""
    samples: int = Field(2, ge=1)
    """Completions per prompt; pass@1 is their mean."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0 decodes greedily."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus mass; as in training if left out."""
    top_k: int | None = Field(None, ge=0)
    """Sample among this many most likely tokens, 0 for all; as in training if left out."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens a completion may have; as in training if left out."""
    train_prompts: int = Field(256, ge=0)
    """How many training prompts are evaluated at the start and the end."""


class CheckpointConfig(StrictModel):
    """When the whole run is written to disk."""

    every: int = Field(50, ge=0)
    """Write a checkpoint every so many steps; 0 only at a stop."""
    keep: int = Field(2, ge=1)
    """How many of the newest checkpoints are kept."""
    stop_grace_s: float = Field(4.0, ge=0)
    """How long a stop by hand waits for the policy step under way. A longer step is lost, and a resume goes on from the checkpoint before it."""


class TranscriptConfig(StrictModel):
    """What is kept of the completions for people to read."""

    share: float = Field(1.0, ge=0, le=1)
    """Share of groups whose texts are kept."""
    max_chars: int = Field(2000, ge=1)
    """Longer texts are cut to this many characters."""
    tokens_every: int = Field(10, ge=0)
    """Keep log-prob, advantage and mismatch of every token in some groups of every so manieth step; 0 for none."""
    tokens_groups: int = Field(2, ge=1)
    """Of how many groups of such a step."""


class RunConfig(StrictModel):
    """One training run."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run; its directory is `runs_dir/name-TIME`."""
    policy: PathText
    """Starting policy: a Hugging Face directory, relative to the recipe, or a model name."""
    steps: int = Field(ge=1)
    """Policy steps."""
    batch_groups: int = Field(32, ge=1)
    """Groups (prompts) per policy step."""
    group_size: int = Field(8, ge=1)
    """Completions sampled per prompt."""
    max_group_size: int | None = Field(None, ge=3)
    """Let group sizes adapt, from 2 up to this, with batch_groups * group_size completions per step as before; None keeps all at group_size."""
    max_staleness: int = Field(0, ge=0, le=0)
    """How many policy versions a group may be behind; 0 is exact on-policy training, the only mode so far."""
    seed: int = Field(0, ge=0)
    """The one seed that every random choice derives from."""
    runs_dir: PathText = "runs"
    """Where run directories are made."""
    start_timeout_s: float = Field(300.0, gt=0)
    """Deadline for an engine to load its model, and for the learner ranks to meet and load theirs."""
    mirror: str | None = None
    """A copy of the run grows under this fsspec URI (`s3://bucket/runs`, `file:///backup`); credentials come from the environment."""
    stall_timeout_s: float = Field(900.0, gt=0)
    """A phase that takes longer stops the run and says what it was waiting for."""
    prompts: PromptConfig
    sampling: SamplingConfig = SamplingConfig()
    environment: EnvironmentConfig = SingleTurnConfig()
    rewards: RewardsConfig = RewardsConfig()
    shaping: Rules = ()
    """Rules that change what the learner optimises, and nothing that the moments remember (docs/shaping.md); each kind once."""
    rollout: RolloutConfig = RolloutConfig()
    weights: TransportConfig = SharedMemoryConfig()
    """How new weights get from the learner to the engines."""
    moments: MomentsConfig = MomentsConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    transcripts: TranscriptConfig = TranscriptConfig()

    @property
    def slots(self) -> int:
        """Most groups between admission and training; bounds every queue and buffer of the run."""
        return self.batch_groups * (self.max_staleness + 1)

    @property
    def generation_batches(self) -> int:
        """How many batches a step may sample to train on one."""
        return self.prompts.generation_batches if self.prompts.filter == "dapo" else 1

    @field_validator("moments")
    @classmethod
    def _estimator_is_registered(cls, moments: MomentsConfig) -> MomentsConfig:
        moments.estimator.create()
        return moments

    @model_validator(mode="after")
    def _mirror_can_be(self) -> "RunConfig":
        # Not a field's validator: what it raises is printed with the value, and there may be a password in that.
        if self.mirror is not None:
            _refuse_unknown_uri(self.mirror)
        return self

    @model_validator(mode="after")
    def _numbers_fit(self) -> "RunConfig":
        longest = self.prompts.max_tokens + self.sampling.max_tokens
        if longest > self.rollout.max_model_len:
            raise ValueError(
                f"prompts.max_tokens + sampling.max_tokens = {longest} is more than "
                f"rollout.max_model_len = {self.rollout.max_model_len}; raise the latter or lower one of the former"
            )
        evaluated = self.prompts.max_tokens + (self.evaluation.max_tokens or 0)
        if evaluated > self.rollout.max_model_len:
            raise ValueError(
                f"prompts.max_tokens + evaluation.max_tokens = {evaluated} is more than "
                f"rollout.max_model_len = {self.rollout.max_model_len}; raise the latter or lower one of the former"
            )
        if not can_teach(self.moments, self.group_size):
            raise ValueError(
                f"moments.estimator = {self.moments.estimator.kind} gives no group of group_size = {self.group_size} any advantage; "
                "raise group_size, or see its options in docs/estimators.md"
            )
        if self.learner.updates_per_batch > self.batch_groups:
            raise ValueError(
                f"learner.updates_per_batch = {self.learner.updates_per_batch} is more than batch_groups = {self.batch_groups}"
            )
        return self

    @model_validator(mode="after")
    def _verifiers_end_by_themselves(self) -> "RunConfig":
        """Their own deadlines say why they were missed, which `rewards.timeout_s` does not."""
        for source in self.prompts.sources:
            whole = source.verifier
            for each in (member.verifier for member in whole.of.values()) if isinstance(whole, Weighted) else (whole,):
                if isinstance(each, Code | Http | Judge) and each.seconds >= self.rewards.timeout_s:
                    raise ValueError(
                        f"prompts.sources: source `{source.name}`: verifier `{each.kind}` takes up to {each.seconds:g} seconds, "
                        f"rewards.timeout_s ends it after {self.rewards.timeout_s:g}; set that above its `seconds`"
                    )
        return self

    @model_validator(mode="after")
    def _the_learner_goes_with_the_sampler(self) -> "RunConfig":
        adapter = self.learner.published_adapter
        if adapter is not None and isinstance(self.rollout.engine, VllmConfig) and adapter.rank > LARGEST_RANK:
            raise ValueError(
                f"learner.adapter.rank = {adapter.rank} is more than the {LARGEST_RANK} that vLLM takes as an adapter; set "
                "learner.adapter.publish = merged"
            )
        if self.sampling.is_cut:
            refuse_ratios_to_a_cut_sampler(self.learner)
        refuse_uncorrected_staleness(self.learner, self.max_staleness)
        return self

    @model_validator(mode="after")
    def _shaping_makes_sense(self) -> "RunConfig":
        most = self.sampling.max_tokens
        run = Circumstances(
            max_tokens=most,
            room=self.rollout.max_model_len - self.prompts.max_tokens - most,
            group_size=self.group_size,
            largest_group=self.max_group_size or self.group_size,
            highest_reward=None if self.rewards.range is None else self.rewards.range[1],
            mask_truncated=self.learner.mask_truncated,
            passes_by=self.prompts.filter == "dapo",
        )
        refuse_senseless_shaping(self.shaping, run)
        return self

    @model_validator(mode="after")
    def _groups_can_be_uniform(self) -> "RunConfig":
        for key, value in (("filter", "dapo"), ("order", "greso")):
            if self.group_size == 1 and getattr(self.prompts, key) == value:
                raise ValueError(
                    f"prompts.{key} = {value} goes by groups of equal rewards, and group_size = 1 makes none of two rewards or more; "
                    "raise group_size, or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _group_sizes_fit(self) -> "RunConfig":
        largest = self.max_group_size
        if largest is not None and not SMALLEST < self.group_size < largest:
            raise ValueError(
                f"max_group_size = {largest} with group_size = {self.group_size} leaves nothing to adapt: sizes go from {SMALLEST} to "
                "max_group_size with group_size as their mean, which must lie between; raise group_size (and lower "
                "batch_groups, if the completions per step are to stay), raise max_group_size, or leave it out"
            )
        if largest is not None and not can_teach(self.moments, SMALLEST):
            raise ValueError(
                f"max_group_size = {largest} makes some groups as small as {SMALLEST}, and moments.estimator = "
                f"{self.moments.estimator.kind} gives those no advantage; leave max_group_size out, or see its options in docs/estimators.md"
            )
        return self


def _refuse_unknown_uri(uri: str) -> None:
    """Raise ValueError where a URI cannot be a mirror whatever stands there: no protocol, no backend for it, a password."""
    import fsspec  # late: a run without a mirror has no use for it

    protocol, separator, _ = uri.partition("://")
    if not separator:
        raise ValueError(f"mirror: {uri!r} is no URI; write for example s3://bucket/runs or file:///backup/runs")
    if urlsplit(uri).password is not None:
        raise ValueError(
            "mirror: there is a password in the URI; leave credentials to the environment, as fsspec reads them"
        )
    if is_signed(uri):
        raise ValueError(
            "mirror: there is a signature or a token in the URI; leave credentials to the environment, as fsspec reads them"
        )
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise ValueError(f"mirror: {uri!r} needs a package that is not installed: {error}") from None
    except ValueError:
        known = nearest(protocol, fsspec.available_protocols())
        raise ValueError(f"mirror: {uri!r}: fsspec knows no protocol {protocol!r}{known}") from None
