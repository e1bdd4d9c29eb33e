"""What a rollout actor puts into the object store for the learner: the tokens of one group."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class GroupPayload:
    """Tokens of the G completions of one prompt. The learner ranks are its only readers.

    prompt_ids: [P] int32.    completions: G arrays [T_i] int32, end-of-sequence token included.
    logprobs: G arrays [T_i] float32, under the distribution that was sampled from (temperature and truncation applied).
    versions: G arrays [T_i] int32, the policy version that sampled each token.
    """

    group_id: str
    prompt_ids: np.ndarray
    completions: tuple[np.ndarray, ...]
    logprobs: tuple[np.ndarray, ...]
    versions: tuple[np.ndarray, ...]
    temperature: float
