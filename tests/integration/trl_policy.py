"""What the tests of the TRL adapter train, and how; imported when the first of them runs, for TRL takes its time to import."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from moments_service.adapters.trl import BVBlendTrainer

ROOT = Path(__file__).parents[2]
POLICY = str(ROOT / "deploy/recipes/cold_start/policy")
TOPICS = ("sum", "legs")
ROWS = [{"prompt": f"{topic} {n}: ", "topic": topic} for n in range(4) for topic in TOPICS]
GENERATIONS = 4
Reward = Callable[..., list[float | None]]


class Recorder:
    """A reward that keeps what it was asked and what it said."""

    def __init__(self, reward: Callable[[int, str, str], float | None]) -> None:
        self.__name__ = "recorder"
        self._reward = reward
        self.calls: list[tuple[list[str], list[str], list[float | None], list[int]]] = []

    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any
    ) -> list[float | None]:
        rewards = [self._reward(len(self.calls), p, c) for p, c in zip(prompts, completions, strict=True)]
        self.calls.append((prompts, completions, rewards, [len(ids) for ids in completion_ids]))
        return rewards


class Watched(BVBlendTrainer):
    """Keeps the advantages as the loss sees them, by the ids of prompt and completion, one dict per micro-batch."""

    seen: list[dict[tuple[str, str], float]]

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> Any:
        decode = self.processing_class.batch_decode
        texts = (decode(inputs[f"{part}_ids"], skip_special_tokens=True) for part in ("prompt", "completion"))
        self.__dict__.setdefault("seen", []).append(
            dict(zip(zip(*texts, strict=True), inputs["advantages"].tolist(), strict=True))
        )
        return super()._compute_loss(model, inputs)


def build(kind: type[GRPOTrainer], reward: Reward, output: Path, arguments: dict[str, Any], **own: Any) -> Any:
    torch.manual_seed(0)
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "num_generations": GENERATIONS,
        "max_completion_length": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "shuffle_dataset": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }
    return kind(
        model=AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(POLICY),
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(output), **(defaults | arguments)),
        train_dataset=Dataset.from_list(ROWS),
        **own,
    )


def by_content(call: int, prompt: str, completion: str) -> float | None:
    """Rewards that one completion has wherever it stands; about a sixth of the completions have none."""
    mark = sum(completion.encode()) % 6
    return None if mark == 0 else float(mark % 2)
