"""Everything that a rollout actor is made from."""

from dataclasses import dataclass, field
from typing import Any

from actors.config import RewardsConfig, RolloutConfig, SamplingConfig
from actors.engines.adapter_plan import AdapterPlan
from actors.environments.protocol import EnvironmentKind
from actors.shaping.protocol import ShapingOptions
from actors.weights.transport import TransportKind


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """What all rollout actors of a run have in common."""

    rollout: RolloutConfig
    sampling: SamplingConfig
    rewards: RewardsConfig
    environment: EnvironmentKind
    weights: TransportKind
    """How new weights come; the learner's."""
    policy: str
    """Directory (on every node) or hub id of a Hugging Face checkpoint."""
    chat: bool
    """Whether prompts are wrapped in the tokenizer's chat template."""
    seed: int
    """The run's."""
    adapter: AdapterPlan | None = None
    """Where weights come as adapters alone."""
    text_share: float = 1.0
    """Of how many groups the texts are kept."""
    text_chars: int = 2000
    """How much of each text is kept."""
    verifiers: tuple[str, ...] = ()
    """Names to load at the start; others are loaded when first needed."""
    shaping: tuple[ShapingOptions, ...] = ()
    """Rules that may want to know of completions, or tell the policy something."""
    start_timeout_s: float = 300.0
    """How long a rollout waits for `ready`."""
    chat_options: dict[str, Any] = field(default_factory=dict)
    """What the chat template is told besides."""
