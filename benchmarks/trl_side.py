"""TRL's GRPOTrainer as one side of a benchmark: a step whenever it is told to (`turns.py`), in float32 on a CPU.

`default` is the trainer as its documentation begins, with nothing set but the shape of a batch: microbatches of eight rows that
compute their activations again in the backward pass. `tuned` is what a careful user on this machine would set: no recomputation, and
microbatches of `TUNED_TOKENS`.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from benchmarks.turns import turns

Rollout = Callable[[list[str], Any], dict[str, Any]]
"""Prompts, each as often as it has completions, and the trainer -> `prompt_ids`, `completion_ids` and `logprobs`, a list for each."""
TUNED_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a batch."""

    prompts: int
    completions: int
    """Of each prompt."""
    prompt_tokens: int
    """Of the longest prompt."""
    completion_tokens: int
    """Of every completion, no more and no fewer."""


class InTurns(TrainerCallback):
    """Waits before each step until it is told to, and ends the training when nobody is left to say so."""

    def __init__(self) -> None:
        self.turns = turns()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._wait(control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        self._wait(control)

    def _wait(self, control: TrainerControl) -> None:
        if next(self.turns, self) is self:
            control.should_training_stop = True


def make_trainer(
    policy: str,
    prompts: Sequence[str],
    reward: Callable[..., list[float | None]],
    shape: Shape,
    kind: Literal["default", "tuned"],
    rollout: Rollout | None = None,
    **options: Any,
) -> GRPOTrainer:
    """A trainer whose `train()` takes its turns until nobody asks for more.

    policy: a Hugging Face directory with a tokenizer.    reward: as TRL calls it, of `prompts`, `completions` and keywords.
    rollout: in place of generation.    options: further fields of GRPOConfig, over those made here.
    """
    samples = shape.prompts * shape.completions
    made: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(prefix="trl_side"),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_steps": 1_000_000,
        "num_generations": shape.completions,
        "max_completion_length": shape.completion_tokens,
        "generation_kwargs": {"min_new_tokens": shape.completion_tokens},
        "model_init_kwargs": {"dtype": "float32"},
        "generation_batch_size": samples,
    }
    rows = 8
    if kind == "tuned":
        rows = min(samples, max(1, TUNED_TOKENS // (shape.prompt_tokens + shape.completion_tokens)))
        rows = max(count for count in range(1, rows + 1) if samples % count == 0)
        made["gradient_checkpointing"] = False
    made |= {"per_device_train_batch_size": rows, "gradient_accumulation_steps": samples // rows}
    # Every step is of the same number of prompts, also where there are few.
    repeated = [prompts[i % len(prompts)] for i in range(max(len(prompts), 64 * shape.prompts))]
    return GRPOTrainer(
        model=policy,
        args=GRPOConfig(**made | options),
        train_dataset=Dataset.from_dict({"prompt": repeated}),
        processing_class=AutoTokenizer.from_pretrained(policy),
        reward_funcs=reward,
        rollout_func=rollout,
        callbacks=[InTurns()],
    )
