"""How a configuration draws the samples of its evaluations."""

from actors.rollout.evaluated import EvaluationDraw
from deploy.config.models import RunConfig


def evaluation_draw(config: RunConfig) -> EvaluationDraw:
    """As `evaluation` says; what it leaves out is as in training."""
    own, training = config.evaluation, config.sampling
    return EvaluationDraw(
        samples=own.samples,
        temperature=own.temperature,
        top_p=training.top_p if own.top_p is None else own.top_p,
        top_k=training.top_k if own.top_k is None else own.top_k,
        max_tokens=training.max_tokens if own.max_tokens is None else own.max_tokens,
    )
