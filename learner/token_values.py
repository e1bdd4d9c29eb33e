"""What every token of a group was worth when it was trained: for people who read the samples."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TokenValues:
    """T tokens of one sample that was trained on, from the first that the policy sampled to the last.

    What an environment said in between has no values: NaN.
    """

    group_id: str
    index: int
    """Of the sample in its group."""
    token_ids: npt.NDArray[np.int32]
    """[T]"""
    sampler: Floats
    """[T] nats, log-prob of the engine that sampled the token."""
    learner: Floats
    """[T] nats, of the policy before the step that trained on it."""
    advantage: Floats
    """[T] the sample's advantage, times what the correction lets the token count."""

    @property
    def mismatch(self) -> Floats:
        """[T] nats, learner - sampler."""
        return self.learner - self.sampler
