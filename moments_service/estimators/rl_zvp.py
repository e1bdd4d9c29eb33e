"""RL-ZVP: GRPO, and groups without any variance are pushed by how surprising their completions were."""

from typing import Literal

import numpy as np
from pydantic import Field

from moments_service.estimators.base import Advantages, Estimator, EstimatorOptions, MissingFieldError, RewardBatch
from moments_service.estimators.grpo import grpo
from moments_service.messages.groups import FULL_REWARD


class RLZVP(EstimatorOptions):
    """GRPO's A; in a group of all right A = alpha H, in one of all wrong A = -alpha (max of H in the group - H).

    H is the mean surprisal of a completion's tokens, -log pi in nats, as the sampler drew them: an unbiased stand-in for
    the mean entropy of its tokens. The paper's push is per token, with the maximum over the tokens of the completion; a
    completion has one advantage here, so H is a mean over tokens and the maximum one over the group's completions. All right
    means r >= 1 for every reward, all wrong r <= 0; a uniform group in between gives 0, and so does a completion whose
    surprisal nobody knows. A group of one completion, or with one reward left, is uniform too.

    Baseline and scale reported are GRPO's. Raises MissingFieldError where rewards come without surprisals.
    Source: RL-ZVP (arXiv 2509.21880); METHODS B, written from knowledge and not re-checked, as is the default alpha.
    """

    kind: Literal["rl_zvp"] = "rl_zvp"
    alpha: float = Field(0.1, ge=0)
    """Push of a uniform group, per nat of surprisal."""

    def create(self) -> Estimator:
        return self

    def __call__(self, batch: RewardBatch) -> Advantages:
        plain = grpo(batch)
        valid = ~np.isnan(batch.rewards)
        if not valid.any():
            return plain
        if batch.surprisals is None:
            raise MissingFieldError(
                "estimator rl_zvp needs surprisals, the mean -log-prob of each completion's tokens, and this batch has none"
            )
        right = (valid & (batch.rewards >= FULL_REWARD)).sum(axis=1) == valid.sum(axis=1)
        wrong = (valid & (batch.rewards <= 0.0)).sum(axis=1) == valid.sum(axis=1)
        known = valid & ~np.isnan(batch.surprisals)
        surprisal = np.where(known, batch.surprisals, 0.0)
        largest = np.where(known, surprisal, -np.inf).max(axis=1, initial=0.0)
        push = np.where(right[:, None], surprisal, np.where(wrong[:, None], surprisal - largest[:, None], 0.0))
        values = np.where((right | wrong)[:, None], self.alpha * np.where(known, push, 0.0), plain.values)
        return Advantages(np.where(valid, values, np.nan), plain.baseline, plain.scale, plain.weight)
