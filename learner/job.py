"""What a run tells its learner besides the configuration."""

from dataclasses import dataclass, field

from actors.weights.shared_memory import SharedMemoryConfig
from actors.weights.transport import TransportKind


@dataclass(frozen=True, slots=True)
class LearnerJob:
    """One training: which policy, for how long, and what is known of the samples that will come."""

    policy: str
    """Where the policy is: a directory or a model name."""
    total_steps: int
    """Policy steps of the whole run; the schedule spans `total_steps * updates_per_batch`."""
    export_dtype: str = "float32"
    """Torch name of the dtype in which weights are offered and exported."""
    weights: TransportKind = field(default_factory=SharedMemoryConfig)
    """How the bytes of an offer get to the engines."""
    longest_sample: int | None = None
    """Most tokens of a sample, prompt included; None where nothing is known but the policy's own limit."""
    truncated_sampler: bool = False
    """Whether top-p or top-k cut what is sampled from, so that the sampler's log-probs are not comparable with the learner's."""
    measure_move: bool = False
    """Whether to measure how far every step moved the policy, by two more forward passes of one microbatch."""
    inspect_dir: str | None = None
    """Where batches whose gradient was not finite are kept; None keeps none."""
    seed: int = 0
    """What the starting values of an adapter derive from."""
