"""BV-Blend as an advantage estimator of verl: `algorithm.adv_estimator=bv_blend`.

verl imports this module in each of its processes where `VERL_USE_EXTERNAL_MODULES=moments_service.adapters.verl` is set.
The estimator runs in the driver process alone, and there `registered` holds the moments. Settings are those of
`MomentsConfig`, under `+algorithm.bv_blend`.

verl tells an estimator neither the prompts (its uid is random and new every epoch) nor the step:

- prompts come from `verl_rollouts.AgentLoopManager`, which sees them in the driver on their way to the rollouts. Without
  it all prompts are one cluster;
- a batch is folded in when the next one is scored, or when a checkpoint is written. Nothing reads history in between;
- `Checkpoints` keeps the moments in verl's checkpoints.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.core_algos import register_adv_est
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from moments_service.adapters.registered import RegisteredMoments
from moments_service.config import MomentsConfig

NAME = "bv_blend"


def settings(algorithm: Any) -> Mapping[str, Any]:
    """What stands under `algorithm.bv_blend`, as plain values."""
    found = None if algorithm is None else algorithm.get(NAME, None)
    if found is None or isinstance(found, dict):
        return found or {}
    from omegaconf import OmegaConf  # verl's own configuration library

    return OmegaConf.to_container(found, resolve=True)


registered = RegisteredMoments(settings, keep=200_000)
"""The moments of this process."""


@register_adv_est(NAME)
def bv_blend(
    token_level_rewards: Any, response_mask: Any, index: Any = None, config: Any = None, **_: Any
) -> tuple[Any, Any]:
    """Advantages and returns, [B, T] tensors; the same for all tokens of a completion. index: [B] prompt ids."""
    if index is None:
        raise ValueError("bv_blend needs to know which rows are of one prompt: the batch has no uid")
    return registered.advantages(token_level_rewards, response_mask, index, config)


class Checkpoints(CheckpointCallback):
    """`trainer.checkpoint_callback_class=moments_service.adapters.verl.Checkpoints`: moments live and resume with verl's checkpoints."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        checkpoint = resumed_checkpoint(config.trainer)
        if checkpoint is not None:
            registered.restore(checkpoint, MomentsConfig.model_validate(settings(config.algorithm)))

    def on_save(self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **_: Any) -> None:
        """Called in the driver after each checkpoint, which verl writes after the step's update."""
        registered.save(checkpoint_dir)


def resumed_checkpoint(trainer: Any) -> Path | None:
    """The checkpoint that verl will resume from by these settings."""
    if trainer.resume_mode == "auto":
        found = find_latest_ckpt_path(str(Path(trainer.default_local_dir).absolute()))
    else:
        found = trainer.resume_from_path if trainer.resume_mode == "resume_path" else None
    return None if found is None else Path(found)
