"""One sample: what one trajectory of the policy said and read, token by token. Goes from the rollout actor to the learner."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Sample:
    """L tokens of one trajectory: the prompt, then what the policy sampled and what its environment answered, in turn.

    Trained tokens were sampled: where `loss_mask` is True the id is the one that the engine returned, never a re-tokenised text.
    """

    group_id: str
    index: int
    """Its place in the group."""
    token_ids: npt.NDArray[np.int32]
    """[L], end-of-sequence and stop tokens included."""
    loss_mask: npt.NDArray[np.bool_]
    """[L], whether the policy sampled the token; False for the prompt and for what an environment says."""
    logprobs: npt.NDArray[np.float32]
    """[L] nats, under the distribution that the token was sampled from (temperature and truncation applied); 0 outside the mask."""
    versions: npt.NDArray[np.int32]
    """[L] policy version that sampled the token; -1 outside the mask."""
    temperature: float
    turns: int = 1
    """How often the policy spoke."""
    truncated: bool = False
    """Whether a length limit ended it."""

    def __post_init__(self) -> None:
        name = f"group {self.group_id}: sample {self.index}"
        sizes = {len(self.token_ids), len(self.loss_mask), len(self.logprobs), len(self.versions)}
        if len(sizes) != 1:
            raise ValueError(f"{name}: tokens, loss mask, log-probs and versions differ in length: {sorted(sizes)}")
        if len(self.token_ids) == 0 or self.loss_mask[0]:
            raise ValueError(f"{name}: the prompt has no tokens, so nothing predicts the first one that was sampled")

    @property
    def opening(self) -> npt.NDArray[np.int32]:
        """Its tokens before the first that the policy sampled."""
        sampled = np.flatnonzero(self.loss_mask)
        return self.token_ids[: sampled[0]] if len(sampled) else self.token_ids

    @property
    def trained_tokens(self) -> int:
        """How many of its tokens the policy sampled."""
        return int(np.count_nonzero(self.loss_mask))
