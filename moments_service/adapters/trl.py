"""BV-Blend in TRL: a GRPOTrainer whose advantages remember."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOTrainer

from moments_service.adapters.clusters import NamedClusters, prompt_text
from moments_service.adapters.local import LocalMoments
from moments_service.blend import Array
from moments_service.config import MomentsConfig
from moments_service.estimators import RewardBatch
from moments_service.estimators.grpo import grpo
from moments_service.signal import signal_metrics

logger = logging.getLogger(__name__)

FOLDER = "bv_blend"
"""Where the moments are in a checkpoint."""


@dataclass(frozen=True, slots=True)
class _Scored:
    """What the reward functions said of the completions of all processes, in TRL's order: groups stand together."""

    prompts: list[str]
    labels: list[str] | None
    lengths: list[int]
    rewards: Array
    """[B], NaN where no reward function gave one."""


class BVBlendTrainer(GRPOTrainer):
    """`GRPOTrainer` with BV-Blend advantages; everything else, and every argument, is TRL's.

    moments: the `LocalMoments` to use, or the config to make them with. Clusters are then fitted on the prompts of the
    training set, which are embedded once and cached, or on the first batch where the data set cannot be gone through.
    cluster_column: a column of the data set that names the cluster of each row, instead of its meaning. With `LocalMoments`
    of one's own, those need `NamedClusters()` then.

    Rewards are TRL's weighted sum, NaN where all functions return None; such completions get 0 and stay out of history.
    `scale_rewards` has no effect: the estimator has its own scale. A batch of completions is folded in after the first
    optimizer step that used it; later steps on the same completions (`steps_per_generation`, `num_iterations`) reuse their
    advantages. Evaluation reads history and leaves no trace in it. Moments are saved in `checkpoint-*/bv_blend` and restored by
    `resume_from_checkpoint`.

    With several processes the moments live in the main one, which broadcasts the advantages.
    """

    def __init__(
        self,
        *args: Any,
        moments: LocalMoments | MomentsConfig | None = None,
        cluster_column: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r} normalises rewards by batch, and history "
                "needs rewards that mean the same in every batch: use sum_then_normalize"
            )
        self.cluster_column = cluster_column
        self.moments = moments if isinstance(moments, LocalMoments) else self._new_moments(moments or MomentsConfig())
        self._scored: _Scored | None = None
        self.add_callback(_Bookkeeping(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """TRL's `train`; the moments go on from the checkpoint too."""
        checkpoint = (
            get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        )
        if checkpoint and self.accelerator.is_main_process:
            self._restore(Path(checkpoint) / FOLDER)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        per_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        column = self.cluster_column
        labels = [""] * len(inputs) if column is None else [str(row[column]) for row in inputs]
        rows = gather_object(list(zip(map(prompt_text, prompts), labels, map(len, completion_ids_list), strict=True)))
        texts, names, lengths = (list(values) for values in zip(*rows, strict=True))
        weighted = per_function.double().cpu().numpy() * self.reward_weights.double().cpu().numpy()
        missing = np.isnan(weighted).all(axis=1)
        rewards = np.where(missing, np.nan, np.nansum(weighted, axis=1))
        self._scored = _Scored(texts, None if column is None else names, lengths, rewards)
        return per_function

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        scored, self._scored = self._scored, None
        assert scored is not None
        mode = "train" if cast(torch.nn.Module, self.model).training else "eval"
        size = cast(int, self.num_generations if mode == "train" else self.num_generations_eval)
        shared: list[Any] = [None]
        if self.accelerator.is_main_process:
            shared = [self._blend(scored, size, remember=mode == "train")]
        values, metrics = broadcast_object_list(shared)[0]
        for name, value in metrics.items():
            self._metrics[mode][f"bv_blend/{name}"].append(value)
        self._log_advantages(values)
        own = output["advantages"]
        start = self.accelerator.process_index * len(own)
        output["advantages"] = torch.as_tensor(values[start : start + len(own)], dtype=own.dtype, device=own.device)
        return output

    def _blend(self, scored: _Scored, size: int, remember: bool) -> tuple[list[float], dict[str, float]]:
        """Advantages of all completions, 0 for those without a reward, and what to log. size: completions of a group."""
        rewards, lengths = scored.rewards.reshape(-1, size), np.array(scored.lengths).reshape(-1, size)
        prompts = scored.prompts[::size]
        labels = None if scored.labels is None else scored.labels[::size]
        if remember:
            given = self.moments.advantages(self.moments.next_step, prompts, rewards, lengths, labels)
        else:
            given = self.moments.preview(prompts, rewards, lengths, labels)
        metrics: dict[str, float] = {}
        if not np.isnan(rewards).all():
            history = self.moments.history(prompts if labels is None else labels)
            batch = RewardBatch(rewards, lengths, tuple(prompts), history, sizes=np.full(len(rewards), size))
            metrics = signal_metrics(batch, given, grpo(batch), self.moments.config.blend.max_advantage)
        return np.nan_to_num(given.values).ravel().tolist(), metrics

    def _log_advantages(self, values: Sequence[float]) -> None:
        """TRL has put GRPO's advantages of this batch into its table of completions; put ours there."""
        logged: deque[float] = cast(Any, self._logs["advantages"])
        for _ in range(min(len(values), len(logged))):
            logged.pop()
        logged.extend(values)

    def _new_moments(self, config: MomentsConfig) -> LocalMoments:
        if self.cluster_column is not None:
            return LocalMoments(config, clusters=NamedClusters(), seed=self.args.seed)
        data: Any = self.train_dataset
        whole = self.accelerator.is_main_process and hasattr(data, "__len__")
        prompts = [prompt_text(prompt) for prompt in data["prompt"]] if whole else []
        return LocalMoments(config, prompts=prompts, seed=self.args.seed)

    def _restore(self, folder: Path) -> None:
        if folder.exists():
            self.moments = LocalMoments.load(folder, self.moments.config)
        else:
            logger.warning(
                "%s does not exist: that checkpoint is not of a BVBlendTrainer, history starts empty", folder
            )


class _Bookkeeping(TrainerCallback):
    """Folds batches in after their optimizer step, and saves the moments with every checkpoint."""

    def __init__(self, trainer: BVBlendTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        moments = self._trainer.moments
        moments.commit(moments.next_step - 1, policy_version=state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._trainer.moments.save(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / FOLDER)
