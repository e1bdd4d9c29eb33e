"""Every metric that a run exports to Prometheus.

All are gauges. Ray keeps the counters of a process that ended for as long as the cluster lives, while it forgets gauges within
half a minute; and it refuses a count of zero, so that a counter would be absent until the first thing it counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from deploy.watching.sink import Numbers

PREFIX = "bvblend_"
EXPORTED_PREFIX = f"ray_{PREFIX}"
"""Ray puts its own name in front of what it exports."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One name; besides `label` every metric has the label `run`, the name of the run directory."""

    name: str
    reads: str
    """The number that it shows. With a label: the first part of `PART/VALUE` numbers, one series a value."""
    unit: str
    description: str
    label: str | None = None


METRICS = (
    Metric("step", "step", "steps", "Policy steps done."),
    Metric("steps_wanted", "steps_wanted", "steps", "Policy steps that the run is to make."),
    Metric("last_step_timestamp_seconds", "last_step_at", "s since 1970", "When the last policy step ended; before the first, when the run began."),
    Metric("policy_version", "policy_version", "versions", "Version of the weights that the rollout actors serve."),
    Metric("step_seconds", "seconds", "s", "Wall time of the last step, without evaluations and checkpoints."),
    Metric("phase_seconds", "phases", "s", "Wall time of each phase of the last step.", label="phase"),
    Metric("tokens_per_second", "tokens_per_s", "tokens/s", "Sampled tokens by the wall time of the step."),
    Metric("verdicts_per_second", "verifier/verdicts_per_s", "verdicts/s", "Verdicts on completions by the wall time of the step."),
    Metric("verdict_seconds", "verifier/seconds", "s", "Mean time that a verifier worked on a completion."),
    Metric("verdict_wait_share", "verifier/waited", "share", "Of the time of a group, the share in which it was sampled and waited for its verdicts; others are sampled meanwhile."),
    Metric("reward_mean", "reward/mean", "reward", "Mean raw reward of the batch."),
    Metric("batch_pass_at_1", "reward/pass_at_1", "share", "Completions of the batch that solve their prompt."),
    Metric("source_pass_at_1", "pass_at_1", "share", "The same for each source; of the last batch that held any of its prompts.", label="source"),
    Metric("evaluation_pass_at_1", "evaluation", "share", "pass@1 of the last evaluation.", label="split"),
    Metric("error_share", "reward/errors", "share", "Completions of the batch without a reward: the verifier failed."),
    Metric("completion_tokens", "completion/length", "tokens", "Mean length of the batch's completions."),
    Metric("truncated_share", "completion/truncated", "share", "Completions that were cut at `sampling.max_tokens`."),
    Metric("effective_signal", "effective_signal", "share", "Signal to noise of the advantages as a share of a perfect baseline's: `own` with the run's estimator, `grpo` with GRPO on the same rewards. A batch scatters: average it.", label="kind"),
    Metric("non_uniform_share", "reward/non_uniform", "share", "Groups of the batch whose rewards are not all equal."),
    Metric("signal_share", "signal", "share", "Groups with any advantage that is not 0: `own` with the run's estimator, `grpo` with GRPO on the same rewards, `rescued` the former without the latter.", label="kind"),
    Metric("history_weight", "advantage/history_weight", "share", "Mean trust in history, in [0, 1]; estimators without history have none."),
    Metric("advantage_mean_abs", "advantage/mean_abs", "reward", "Mean absolute advantage."),
    Metric("loss", "learner/loss", "", "Loss of the policy step."),
    Metric("entropy", "learner/entropy", "nats", "Mean entropy of the policy per token."),
    Metric("grad_norm", "learner/grad_norm", "", "Norm of the gradient before it is clipped."),
    Metric("learning_rate", "learner/lr", "", "Learning rate of the step."),
    Metric("approx_kl", "learner/approx_kl", "nats", "How far the policy moved within the batch."),
    Metric("reference_kl", "learner/reference_kl", "nats", "How far the policy is from the reference policy; 0 where there is none."),
    Metric("clip_low_share", "learner/clip_low", "share", "Tokens whose ratio was clipped from below."),
    Metric("clip_high_share", "learner/clip_high", "share", "Tokens whose ratio was clipped from above."),
    Metric("mismatch_k3", "learner/mismatch_k3", "nats", "How far the sampler's log-probs are from the learner's (k3 estimate)."),
    Metric("mismatch_max", "learner/mismatch_max", "nats", "Largest difference between a sampler's and a learner's log-prob."),
    Metric("mismatch_mean", "learner/mismatch_mean", "nats", "Mean difference, without its sign, between a sampler's and a learner's log-prob."),
    Metric("mismatch_chi2", "learner/mismatch_chi2", "", "Chi-squared divergence of the learner's policy from the sampler's."),
    Metric("mismatch_effective_share", "learner/mismatch_ess", "share", "Effective sample size of the tokens, weighed by learner over sampler."),
    Metric("ratio_p01", "learner/ratio_p01", "", "Ratio of the policy to where ratios start that 1 % of the tokens are below."),
    Metric("ratio_p99", "learner/ratio_p99", "", "Ratio of the policy to where ratios start that 1 % of the tokens are above."),
    Metric("slots", "slots", "groups", "Bound on groups between admission and training."),
    Metric("groups", "groups", "groups", "Groups on their way after the step: `in_flight` are sampled, `scored` wait for their batch, `ready` at the moments service.", label="state"),
    Metric("staleness_share", "staleness", "share", "Groups of the batch by how many policy versions their oldest token is behind.", label="versions"),
    Metric("redispatched_groups", "groups_redispatched", "groups", "Groups of the step whose prompts were dispatched again."),
    Metric("passed_by_groups", "groups_passed_by", "groups", "Groups of equal rewards that were sampled for the step and left out of its batch (prompts.filter)."),
    Metric("seen_groups", "counts", "", "Running totals of the moments service over the whole run, resumes included: groups, completions, errors, lost, trained.", label="count"),
    Metric("rollout_actors", "actors", "actors", "Rollout actors: `serving`, or `away` until Ray has restarted them.", label="state"),
    Metric("actor_restarts", "restarts", "restarts", "Rollout actors that died since the run, or its resume, began."),
    Metric("alarms", "alarms", "alarms", "Health alarms since the run, or its resume, began."),
    Metric("clusters", "clusters", "clusters", "Clusters of the moments: `all`, and those `seen` in a batch.", label="kind"),
)  # fmt: skip

_WHOLE = {metric.reads: metric for metric in METRICS if metric.label is None}
_PARTS = {metric.reads: metric for metric in METRICS if metric.label is not None}


def readings(numbers: Numbers) -> Iterator[tuple[Metric, str, float]]:
    """What the numbers say of each metric: the metric, the value of its own label or "", the value. Leaves NaN out."""
    for name, value in numbers.items():
        if value != value:
            continue
        if (metric := _WHOLE.get(name)) is not None:
            yield metric, "", value
            continue
        first, _, rest = name.partition("/")
        if rest and (metric := _PARTS.get(first)) is not None:
            yield metric, rest, value
