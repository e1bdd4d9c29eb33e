"""Which settings of the learner do not go with how completions are sampled: refused before anything starts."""

from learner.config import LearnerConfig
from learner.corrections import NoCorrection
from learner.losses.old_logprobs import Average, Interpolate, Recompute, Rollout
from learner.losses.r2vpo import R2vpo
from learner.losses.reinforce import Reinforce
from learner.masks import Opsm

_UNCLIPPED = (Reinforce, R2vpo)


def refuse_ratios_to_a_cut_sampler(learner: LearnerConfig) -> None:
    """Raise ValueError where the learner compares itself with the sampler, whose top-p or top-k leave tokens out.

    The sampler's log-probs are then those of the tokens that were left, and its ratio to the policy is not one of two policies.
    """
    if not isinstance(learner.correction, NoCorrection):
        compared = f"learner.correction = {learner.correction.kind}"
    elif isinstance(learner.old_logprobs, (Rollout, Interpolate)):
        compared = f"learner.old_logprobs = {learner.old_logprobs.kind}"
    elif any(isinstance(mask, Opsm) for mask in learner.masks):
        compared = "learner.masks: opsm"
    else:
        return
    raise ValueError(
        f"{compared} compares the policy with the sampler, whose log-probs are those of fewer tokens where sampling.top_p is "
        "below 1 or sampling.top_k is set; sample from all tokens (top_p: 1, top_k: 0), or leave it out"
    )


def refuse_uncorrected_staleness(learner: LearnerConfig, max_staleness: int) -> None:
    """Raise ValueError where groups may be older than the policy and nothing in the loss knows it."""
    if max_staleness == 0 or not isinstance(learner.correction, NoCorrection):
        return
    if isinstance(learner.loss, _UNCLIPPED):
        why = f"learner.loss = {learner.loss.kind} does not clip"
    elif isinstance(learner.old_logprobs, Recompute):
        why = "with learner.old_logprobs = recompute ratios start at the policy of now, so that no clip sees how old a token is"
    elif isinstance(learner.old_logprobs, Average):
        why = "with learner.old_logprobs = average ratios start at another policy than the one that sampled"
    else:
        return
    raise ValueError(
        f"max_staleness = {max_staleness} lets groups be older than the policy, and {why}; set learner.correction (tis, mis, …), "
        "or take a clipped loss with learner.old_logprobs: rollout"
    )
