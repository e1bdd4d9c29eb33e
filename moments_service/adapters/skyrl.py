"""BV-Blend as an advantage estimator of SkyRL: `trainer.algorithm.advantage_estimator=bv_blend`.

`register()` once, where the script is imported, and `Moments(...)` among the trainer's callbacks:

    from moments_service.adapters import skyrl as bv_blend
    bv_blend.register()

    class Experiment(BasePPOExp):
        def get_trainer(self, *args, **kwargs):
            trainer = super().get_trainer(*args, **kwargs)
            trainer.add_callback(bv_blend.Moments())
            return trainer

SkyRL's registry pickles functions by name, so every process finds this module's `bv_blend`; only the process of the
trainer calls it, and there `registered` holds the moments. Without the callback all prompts are one cluster, a batch is
folded in when the next one is scored, and checkpoints carry no moments.
"""

import logging
from pathlib import Path
from typing import Any

from skyrl.backends.skyrl_train.utils.ppo_utils import AdvantageEstimatorRegistry
from skyrl.train.utils.callbacks import TrainingCallback

from moments_service.adapters.clusters import prompt_text
from moments_service.adapters.local import LocalMoments
from moments_service.adapters.registered import RegisteredMoments
from moments_service.config import MomentsConfig

logger = logging.getLogger(__name__)

NAME = "bv_blend"

registered = RegisteredMoments(settings=lambda algorithm: {})
"""The moments of this process."""


def bv_blend(token_level_rewards: Any, response_mask: Any, index: Any, **_: Any) -> tuple[Any, Any]:
    """Advantages and returns, [B, T] tensors; the same for all tokens of a completion. index: B prompt ids."""
    return registered.advantages(token_level_rewards, response_mask, index, config=None)


def register() -> None:
    """Make `bv_blend` known to SkyRL; again, it changes nothing."""
    if NAME not in AdvantageEstimatorRegistry.list_available():
        AdvantageEstimatorRegistry.register(NAME, bv_blend)


class Moments(TrainingCallback):
    """Clusters the prompt set, folds each batch in after its step, keeps moments in the checkpoints.

    config: of the moments, as in this project's own runs.
    """

    def __init__(self, config: MomentsConfig | None = None) -> None:
        self._config = MomentsConfig() if config is None else config

    def on_train_start(self, trainer: Any, callback_input: Any, control: Any) -> None:
        """SkyRL has loaded its checkpoint by now, and `global_step` is the step that it was of."""
        if "://" in trainer.cfg.trainer.ckpt_path:
            raise ValueError(f"moments are saved on local disks only, not at {trainer.cfg.trainer.ckpt_path}")
        rows = [trainer.train_dataset[row] for row in range(len(trainer.train_dataset))]
        prompts = {uid: prompt_text(prompt) for prompt, _, _, uid in rows}
        registered.remember_prompts(prompts, prompts.values())
        if trainer.global_step > 0:
            checkpoint = resumed_checkpoint(trainer.cfg.trainer, trainer.global_step)
            if registered.restore(checkpoint, self._config):
                return
            logger.warning("%s carries no moments: history starts empty", checkpoint)
        registered.use(LocalMoments(self._config, prompts=prompts.values()))

    def on_step_end(self, trainer: Any, callback_input: Any, control: Any) -> None:
        registered.commit(policy_version=callback_input.global_step)

    def on_save(self, trainer: Any, callback_input: Any, control: Any) -> None:
        registered.save(callback_input.ckpt_path)


def resumed_checkpoint(trainer: Any, step: int) -> Path:
    """The checkpoint of `step` that SkyRL has resumed from by these settings."""
    if trainer.resume_mode == "from_path":
        return Path(trainer.resume_path)
    return Path(trainer.ckpt_path) / f"global_step_{step}"
