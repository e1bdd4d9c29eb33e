"""Where verl's driver sees prompts: on their way to the rollouts.

`actor_rollout_ref.rollout.agent.agent_loop_manager_class=moments_service.adapters.verl_rollouts.AgentLoopManager`
"""

from typing import Any

from verl.trainer.ppo.v1 import AgentLoopManagerTQ

from moments_service.adapters.verl import registered


class AgentLoopManager(AgentLoopManagerTQ):
    """verl's own manager, which also says to the estimator of this process what the prompts are."""

    def generate_sequences(self, prompts: Any) -> None:
        registered.remember_prompts(list(prompts["uid"]), [as_conversation(prompt) for prompt in prompts["raw_prompt"]])
        super().generate_sequences(prompts)


def as_conversation(prompt: Any) -> list[dict[str, Any]] | str:
    """verl's raw prompts as plain messages."""
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
