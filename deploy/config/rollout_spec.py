"""What the rollout actors of a run are made from."""

from collections.abc import Sequence

from actors.rollout.spec import RolloutSpec
from deploy.config.models import RunConfig


def rollout_spec(config: RunConfig, verifiers: Sequence[str]) -> RolloutSpec:
    """verifiers: names that are loaded at the start."""
    return RolloutSpec(
        rollout=config.rollout,
        sampling=config.sampling,
        rewards=config.rewards,
        environment=config.environment,
        weights=config.weights,
        adapter=config.learner.published_adapter,
        policy=config.policy,
        chat=config.prompts.chat,
        chat_options=config.prompts.chat_options,
        seed=config.seed,
        text_share=config.transcripts.share,
        text_chars=config.transcripts.max_chars,
        verifiers=tuple(verifiers),
        shaping=config.shaping,
        start_timeout_s=config.start_timeout_s,
    )
