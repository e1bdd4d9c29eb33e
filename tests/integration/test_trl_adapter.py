"""TRL itself, training the shipped tiny policy on this CPU with BV-Blend advantages."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl", reason="TRL is not installed: pip install 'bvblend[trl]'")

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from moments_service.adapters.clusters import LabelClusters
from moments_service.adapters.local import LocalMoments
from moments_service.adapters.trl import FOLDER, BVBlendTrainer
from moments_service.config import BlendConfig, MomentsConfig

pytestmark = pytest.mark.integration

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


def uniform(call: int, prompt: str, completion: str) -> float:
    """Nothing but uniform groups: all right at first, all wrong ever after."""
    return float(call == 0)


def replay(recorder: Recorder, moments: LocalMoments, labels: bool) -> list[dict[tuple[str, str], float]]:
    """What the moments themselves say of the recorded rewards, one dict per generation."""
    expected = []
    for step, (prompts, completions, rewards, lengths) in enumerate(recorder.calls):
        first = prompts[::GENERATIONS]
        table = np.array(rewards, dtype=float).reshape(-1, GENERATIONS)
        sizes = np.array(lengths).reshape(-1, GENERATIONS)
        topics = [prompt.split()[0] for prompt in first] if labels else None
        values = np.nan_to_num(moments.advantages(step, first, table, sizes, topics).values).ravel()
        moments.commit(step, policy_version=step + 1)
        expected.append(dict(zip(zip(prompts, completions, strict=True), values, strict=True)))
    return expected


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_sees_the_advantages_of_the_moments(tmp_path: Path, accumulation: int) -> None:
    recorder = Recorder(by_content)
    arguments = {"gradient_accumulation_steps": accumulation, "temperature": 1.5}
    trainer = build(Watched, recorder, tmp_path, arguments, cluster_column="topic")
    trainer.train()
    own = LocalMoments(clusters=LabelClusters())
    expected = replay(recorder, own, labels=True)
    assert len(expected) == 3 and len(trainer.seen) == 3 * accumulation
    compared = 0
    for step, generation in enumerate(expected):
        for micro_batch in trainer.seen[step * accumulation : (step + 1) * accumulation]:
            for (prompt, completion), value in micro_batch.items():
                assert value == pytest.approx(generation[prompt, completion], abs=1e-6)
                compared += 1
    assert compared >= 12 * accumulation
    assert any(reward is None for call in recorder.calls for reward in call[2])
    for name, array in own.arrays().items():
        np.testing.assert_array_equal(trainer.moments.arrays()[name], array, err_msg=name)
    assert trainer.moments.clusters.assign(list(TOPICS)).tolist() == [0, 1]
    logged = [entry["bv_blend/advantage/history_weight"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0] == 0.0 and logged[-1] > 0.0


def test_uniform_groups_teach_once_there_is_history_and_nothing_under_grpo(tmp_path: Path) -> None:
    def parameters(trainer: GRPOTrainer) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])

    plain = build(GRPOTrainer, Recorder(uniform), tmp_path / "grpo", {"max_steps": 2})
    before = parameters(plain)
    plain.train()
    assert torch.equal(parameters(plain), before)

    trainer = build(Watched, Recorder(uniform), tmp_path / "first", {"max_steps": 1}, cluster_column="topic")
    trainer.train()
    assert torch.equal(parameters(trainer), before)  # no history yet
    trainer = build(Watched, Recorder(uniform), tmp_path / "both", {"max_steps": 2}, cluster_column="topic")
    trainer.train()
    first, second = (list(seen.values()) for seen in trainer.seen)
    assert max(map(abs, first)) == 0.0
    assert max(second) < -0.1  # all wrong, where all was right before
    assert not torch.equal(parameters(trainer), before)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged[1]["bv_blend/signal/rescued"] == 1.0 and logged[1]["frac_reward_zero_std"] == 1.0


def test_a_resumed_run_goes_on_exactly(tmp_path: Path) -> None:
    arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    config = MomentsConfig(blend=BlendConfig(variant="eb"))
    whole = build(Watched, Recorder(by_content), tmp_path, arguments, moments=config, cluster_column="topic")
    whole.train()
    saved = LocalMoments.load(tmp_path / "checkpoint-2" / FOLDER)
    assert saved.config == config and saved.last_step == 1

    resumed = build(Watched, Recorder(by_content), tmp_path, arguments, moments=config, cluster_column="topic")
    resumed._restore(tmp_path / "checkpoint-2" / FOLDER)
    for name, array in saved.arrays().items():
        np.testing.assert_array_equal(resumed.moments.arrays()[name], array, err_msg=name)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.seen == whole.seen[2:]
    for name, array in whole.moments.arrays().items():
        np.testing.assert_array_equal(resumed.moments.arrays()[name], array, err_msg=name)


def test_evaluation_reads_history_and_leaves_no_trace(tmp_path: Path) -> None:
    recorder = Recorder(uniform)
    arguments = {"max_steps": 1, "per_device_eval_batch_size": 4, "num_generations_eval": 1}
    trainer = build(Watched, recorder, tmp_path, arguments, cluster_column="topic")
    trainer.train()
    before = trainer.moments.arrays()
    trainer.evaluate(Dataset.from_list(ROWS[:4]))
    assert len(recorder.calls) == 2 and max(trainer.seen[-1].values()) < -0.1
    for name, array in before.items():
        np.testing.assert_array_equal(trainer.moments.arrays()[name], array, err_msg=name)


def test_completions_are_reused_over_several_steps_and_folded_once(tmp_path: Path) -> None:
    recorder = Recorder(by_content)
    arguments = {"max_steps": 4, "steps_per_generation": 2, "num_iterations": 2, "per_device_train_batch_size": 4}
    trainer = build(Watched, recorder, tmp_path, arguments, cluster_column="topic")
    trainer.train()
    assert len(recorder.calls) == 1 and trainer.moments.last_step == 0
    assert sum(trainer.moments.history(TOPICS).mass) > 0
    assert trainer.seen[0] == trainer.seen[2] and trainer.seen[1] == trainer.seen[3]


def test_clusters_come_from_the_data_set_and_its_conversations(tmp_path: Path) -> None:
    class TwoTopics:
        texts: list[str] = []  # noqa: RUF012

        def encode(self, texts: list[str]) -> np.ndarray:
            self.texts.extend(texts)
            return np.array([[float("sum" in text), float("legs" in text)] for text in texts], dtype=np.float32)

    encoder = TwoTopics()
    prompts = [row["prompt"] for row in ROWS]
    moments = LocalMoments(prompts=prompts, encoder=encoder)
    trainer = build(Watched, Recorder(by_content), tmp_path, {"max_steps": 2}, moments=moments)
    trainer.train()
    own = LocalMoments(prompts=prompts, encoder=encoder)
    replay(trainer.reward_funcs[0], own, labels=False)
    assert trainer.moments is moments and len(moments.clusters) == 2
    for name, array in own.arrays().items():
        np.testing.assert_array_equal(moments.arrays()[name], array, err_msg=name)


def test_rewards_that_a_batch_normalises_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sum_then_normalize"):
        build(BVBlendTrainer, by_content, tmp_path, {"multi_objective_aggregation": "normalize_then_sum"})


def test_two_processes_share_one_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    script = ROOT / "tests/integration/trl_two_processes.py"
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("agrees with the moments") == 2
