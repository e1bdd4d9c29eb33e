"""TRL itself, training the shipped tiny policy on this CPU with BV-Blend advantages."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from moments_service.adapters.clusters import NamedClusters
from moments_service.adapters.local import LocalMoments
from moments_service.config import BlendConfig, MomentsConfig

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        importlib.util.find_spec("trl") is None, reason="TRL is not installed: the extra is bvblend[trl]"
    ),
]

ROOT = Path(__file__).parents[2]
TOPICS = ("sum", "legs")


@pytest.fixture(scope="module")
def policy() -> ModuleType:
    return importlib.import_module("tests.integration.trl_policy")


def uniform(call: int, prompt: str, completion: str) -> float:
    """Nothing but uniform groups: all right at first, all wrong ever after."""
    return float(call == 0)


def replay(
    policy: ModuleType, recorder: Any, moments: LocalMoments, labels: bool
) -> list[dict[tuple[str, str], float]]:
    """What the moments themselves say of the recorded rewards, one dict per generation."""
    expected = []
    for step, (prompts, completions, rewards, lengths) in enumerate(recorder.calls):
        first = prompts[:: policy.GENERATIONS]
        table = np.array(rewards, dtype=float).reshape(-1, policy.GENERATIONS)
        sizes = np.array(lengths).reshape(-1, policy.GENERATIONS)
        topics = [prompt.split()[0] for prompt in first] if labels else None
        values = np.nan_to_num(moments.advantages(step, first, table, sizes, topics).values).ravel()
        moments.commit(step, policy_version=step + 1)
        expected.append(dict(zip(zip(prompts, completions, strict=True), values, strict=True)))
    return expected


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_sees_the_advantages_of_the_moments(policy: ModuleType, tmp_path: Path, accumulation: int) -> None:
    recorder = policy.Recorder(policy.by_content)
    arguments = {"gradient_accumulation_steps": accumulation, "temperature": 1.5}
    trainer = policy.build(policy.Watched, recorder, tmp_path, arguments, cluster_column="topic")
    trainer.train()
    own = LocalMoments(clusters=NamedClusters())
    expected = replay(policy, recorder, own, labels=True)
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
    assert 0.0 < logged[-1] < 1.0


def test_uniform_groups_teach_once_there_is_history_and_nothing_under_grpo(policy: ModuleType, tmp_path: Path) -> None:
    def parameters(trainer: Any) -> Any:
        return policy.torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])

    plain = policy.build(policy.GRPOTrainer, policy.Recorder(uniform), tmp_path / "grpo", {"max_steps": 2})
    before = parameters(plain)
    plain.train()
    assert policy.torch.equal(parameters(plain), before)

    trainer = policy.build(
        policy.Watched, policy.Recorder(uniform), tmp_path / "first", {"max_steps": 1}, cluster_column="topic"
    )
    trainer.train()
    assert policy.torch.equal(parameters(trainer), before)  # no history yet
    trainer = policy.build(
        policy.Watched, policy.Recorder(uniform), tmp_path / "both", {"max_steps": 2}, cluster_column="topic"
    )
    trainer.train()
    first, second = (list(seen.values()) for seen in trainer.seen)
    assert max(map(abs, first)) == 0.0
    assert max(second) < -0.1  # all wrong, where all was right before
    assert not policy.torch.equal(parameters(trainer), before)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged[1]["bv_blend/signal/rescued"] == 1.0 and logged[1]["frac_reward_zero_std"] == 1.0


def test_a_resumed_run_goes_on_exactly(policy: ModuleType, tmp_path: Path) -> None:
    arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    config = MomentsConfig(estimator=BlendConfig(variant="eb"))
    whole = policy.build(
        policy.Watched, policy.Recorder(policy.by_content), tmp_path, arguments, moments=config, cluster_column="topic"
    )
    whole.train()
    saved = LocalMoments.load(tmp_path / "checkpoint-2" / "bv_blend")
    assert saved.config == config and saved.last_step == 1

    resumed = policy.build(
        policy.Watched, policy.Recorder(policy.by_content), tmp_path, arguments, moments=config, cluster_column="topic"
    )
    resumed._restore(tmp_path / "checkpoint-2" / "bv_blend")
    for name, array in saved.arrays().items():
        np.testing.assert_array_equal(resumed.moments.arrays()[name], array, err_msg=name)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.seen == whole.seen[2:]
    for name, array in whole.moments.arrays().items():
        np.testing.assert_array_equal(resumed.moments.arrays()[name], array, err_msg=name)


def test_evaluation_reads_history_and_leaves_no_trace(policy: ModuleType, tmp_path: Path) -> None:
    recorder = policy.Recorder(uniform)
    arguments = {"max_steps": 1, "per_device_eval_batch_size": 4, "num_generations_eval": 1}
    trainer = policy.build(policy.Watched, recorder, tmp_path, arguments, cluster_column="topic")
    trainer.train()
    before = trainer.moments.arrays()
    trainer.evaluate(policy.Dataset.from_list(policy.ROWS[:4]))
    assert len(recorder.calls) == 2 and max(trainer.seen[-1].values()) < -0.1
    for name, array in before.items():
        np.testing.assert_array_equal(trainer.moments.arrays()[name], array, err_msg=name)


def test_completions_are_reused_over_several_steps_and_folded_once(policy: ModuleType, tmp_path: Path) -> None:
    recorder = policy.Recorder(policy.by_content)
    arguments = {"max_steps": 4, "steps_per_generation": 2, "num_iterations": 2, "per_device_train_batch_size": 4}
    trainer = policy.build(policy.Watched, recorder, tmp_path, arguments, cluster_column="topic")
    trainer.train()
    assert len(recorder.calls) == 1 and trainer.moments.last_step == 0
    assert sum(trainer.moments.history(TOPICS).mass) > 0
    assert trainer.seen[0] == trainer.seen[2] and trainer.seen[1] == trainer.seen[3]


def test_clusters_come_from_the_data_set_and_its_conversations(policy: ModuleType, tmp_path: Path) -> None:
    class TwoTopics:
        texts: list[str] = []  # noqa: RUF012

        def encode(self, texts: list[str]) -> np.ndarray:
            self.texts.extend(texts)
            return np.array([[float("sum" in text), float("legs" in text)] for text in texts], dtype=np.float32)

    encoder = TwoTopics()
    prompts = [row["prompt"] for row in policy.ROWS]
    moments = LocalMoments(prompts=prompts, encoder=encoder)
    trainer = policy.build(
        policy.Watched, policy.Recorder(policy.by_content), tmp_path, {"max_steps": 2}, moments=moments
    )
    trainer.train()
    own = LocalMoments(prompts=prompts, encoder=encoder)
    replay(policy, trainer.reward_funcs[0], own, labels=False)
    assert trainer.moments is moments and len(moments.clusters) == 2
    for name, array in own.arrays().items():
        np.testing.assert_array_equal(moments.arrays()[name], array, err_msg=name)


def test_rewards_that_a_batch_normalises_are_refused(policy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sum_then_normalize"):
        policy.build(
            policy.BVBlendTrainer, policy.by_content, tmp_path, {"multi_objective_aggregation": "normalize_then_sum"}
        )


def test_two_processes_share_one_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    script = ROOT / "tests/integration/trl_two_processes.py"
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("agrees with the moments") == 2
