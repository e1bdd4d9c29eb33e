"""What a user can set about sampling, rewards and the rollout actors."""

from typing import Literal

from pydantic import Field, field_validator

from actors.engines.kinds import EngineConfig, VllmConfig
from moments_service.config import StrictModel
from moments_service.messages.groups import LARGEST_REWARD

Placement = Literal["pack", "strict_pack", "spread", "strict_spread"]
"""How actors of one kind share the nodes: on as few as can be or on as many; strictly on one, or on one each."""


class SamplingConfig(StrictModel):
    """How completions are sampled in training."""

    max_tokens: int = Field(16, ge=1)
    """Most tokens a completion may have."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; the learner's log-probs use the same."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus mass; 1 samples from the whole distribution."""
    top_k: int = Field(0, ge=0)
    """Sample among this many most likely tokens; 0 for all."""
    stop: tuple[str, ...] = ()
    """Texts that are single tokens and end a completion, besides the end-of-sequence token."""

    @property
    def is_cut(self) -> bool:
        """Whether some tokens cannot be sampled at all."""
        return self.top_p < 1.0 or self.top_k > 0


class VerifierLimits(StrictModel):
    """What each process of a verifier may have of its machine. What goes beyond is an error of its completion."""

    memory_gib: float | None = Field(16.0, gt=0)
    """GiB that it may hold together with all processes that it starts, and the address space of each: more than is used, as libraries reserve much; CUDA so much that it needs null, which is no limit."""
    open_files: int = Field(1024, ge=64)
    """Open files."""
    file_gib: float = Field(1.0, gt=0)
    """Size of each file that it writes, in GiB."""
    processes: int | None = Field(None, ge=16)
    """Processes and threads of its user as the kernel counts: in its user namespace where it has one, else on the whole machine; null for no limit. Root is not bound by it."""


class RewardsConfig(StrictModel):
    """How verifiers are run: in processes beside the engine that can be killed."""

    range: tuple[float, float] | None = None
    """`[low, high]`: a reward outside is an error of its completion. Left out, one beyond +-1e18 is: moments remember squares."""

    timeout_s: float = Field(10.0, gt=0)
    """A verifier that takes longer for one completion is an error, never a reward."""
    processes: int = Field(2, ge=1)
    """Most verifier processes of each rollout actor; all but one are started when groups wait."""
    limits: VerifierLimits = VerifierLimits()
    """What each of them may have of its machine."""

    @field_validator("range")
    @classmethod
    def _range_can_be(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not -LARGEST_REWARD <= value[0] < value[1] <= LARGEST_REWARD:
            raise ValueError(
                f"[{value[0]:g}, {value[1]:g}] is no range of rewards: [low, high] within +-{LARGEST_REWARD:g} is"
            )
        return value


class RolloutConfig(StrictModel):
    """The rollout actors: how many, on what, with which engine."""

    actors: int = Field(1, ge=1)
    """Number of rollout actors, one engine each."""
    engine: EngineConfig = VllmConfig()
    """What generates: vLLM, or transformers where vLLM cannot run."""
    cpus: float = Field(1, gt=0)
    """CPUs reserved for each actor."""
    gpus: float = Field(0, ge=0)
    """GPUs reserved for each actor; also the tensor-parallel size where above 1."""
    placement: Placement = "spread"
    """How the actors share the nodes: over as many as can be (`spread`), or together on few (`pack`); `strict_` insists."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the engine's weights."""
    max_model_len: int = Field(1024, ge=8)
    """Longest sample, prompt included, in tokens."""
    group_timeout_s: float = Field(600.0, gt=0)
    """A group that takes longer, from its actor to its receipt, is taken back and sampled again."""
    group_attempts: int = Field(3, ge=1)
    """A group that was lost or too slow so many times is given up: an error for each of its completions."""
    update_timeout_s: float = Field(120.0, gt=0)
    """An actor that does not take new weights in this time, or does not say that it is alive, is ended and started again."""
