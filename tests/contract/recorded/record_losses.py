"""Asks an installed TRL or verl for the losses and gradients that its own functions give on random log-probs.

    python -m tests.contract.recorded.record_losses trl     # writes losses_trl.json next to this file

Each case says which options of this project's learner mean the same; tests/contract/test_recorded_losses.py compares. The three
groups have two samples each, since the libraries know no groups when they take a mean over samples.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

LENGTHS = (7, 5, 1, 3, 6, 4)
"""Trained tokens of each sample; the rows are as long as the longest."""
SPREADS = {"near": 0.003, "wide": 0.4, "far": 1.2}
"""How far the policy has moved, in nats: some are clipped in each, of samples or of tokens."""


def drawn(spread: float) -> dict[str, np.ndarray]:
    """Arrays [B, T] that a loss is a function of; `advantages` are one a sample."""
    rng = np.random.default_rng(7)
    shape = (len(LENGTHS), max(LENGTHS))
    old = -rng.exponential(size=shape)
    return {
        "mask": (np.arange(shape[1]) < np.array(LENGTHS)[:, None]).astype(np.float64),
        "old": old,
        "logprobs": old + spread * rng.normal(size=shape) + 0.5 * spread * rng.normal(size=(shape[0], 1)),
        "reference": old + 0.5 * rng.normal(size=shape),
        "rollout": old + 0.1 * rng.normal(size=shape),
        "advantages": np.repeat(rng.normal(size=(shape[0], 1)), shape[1], axis=1),
    }


def tensors(spread: str) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in drawn(SPREADS[spread]).items()}


def case(name: str, spread: str, ours: dict[str, Any], loss: torch.Tensor, logprobs: torch.Tensor) -> dict[str, Any]:
    """What is kept of one call: its loss, and the gradient by the log-probs [B, T]."""
    (gradient,) = torch.autograd.grad(loss, logprobs)
    kept = torch.where(tensors(spread)["mask"] > 0, gradient, 0.0)
    return {"name": name, "spread": spread, "ours": ours, "loss": loss.item(), "gradient": kept.tolist()}


# --- TRL ----------------------------------------------------------------------------------------------------------------

TRL_CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.28},
        {"loss": {"kind": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28}},
    ),
    (
        {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2, "delta": 1.5},
        {"loss": {"kind": "ppo_clip", "dual_clip": 1.5}},
    ),
    (
        {"loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28},
        {"loss": {"kind": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28}, "aggregation": "token_mean"},
    ),
    (
        {"loss_type": "dr_grpo", "epsilon_low": 0.2, "epsilon_high": 0.2},
        {"loss": "ppo_clip", "aggregation": {"kind": "seq_mean_token_sum_norm", "length": 16}},
    ),
    (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
        {"loss": "gspo"},
    ),
    (
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon_low": 2e-3, "epsilon_high": 2.5e-3},
        {"loss": "luspo"},
    ),
    (
        {"loss_type": "cispo", "epsilon_low": 0.2, "epsilon_high": 1.1},
        {"loss": {"kind": "cispo", "clip_high": 0.1}, "aggregation": "token_mean"},
    ),
    ({"loss_type": "sapo"}, {"loss": "sapo"}),
    ({"loss_type": "vespo"}, {"loss": "vespo", "aggregation": "token_mean"}),
    (
        {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2, "off_policy_mask_threshold": 0.1},
        {"loss": "ppo_clip", "masks": [{"kind": "opsm", "threshold": 0.1}]},
    ),
    (
        {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.05},
        {"loss": "ppo_clip", "kl": {"coef": 0.05, "estimator": "k3"}},
    ),
    *(
        (
            {"loss_type": "dapo", "vllm_importance_sampling_mode": mode},
            {"aggregation": "token_mean", "correction": ours},
        )
        for mode, ours in (
            ("token_truncate", {"kind": "tis", "cap": 1.1}),
            ("sequence_truncate", {"kind": "tis", "level": "sequence", "cap": 1.1}),
            ("token_mask", {"kind": "mis", "level": "token", "low": 0.9, "high": 1.1}),
            ("sequence_mask", {"kind": "mis", "low": 0.9, "high": 1.1}),
        )
    ),
]
"""Options of TRL's trainer, and those of ours."""


def trl_cases() -> Iterator[dict[str, Any]]:
    """Runs `GRPOTrainer._compute_loss` on a trainer that has log-probs in the place of a model."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    for theirs, ours in TRL_CASES:
        for spread in SPREADS:
            given = tensors(spread)
            logprobs = given["logprobs"].requires_grad_()
            trainer = _trl_trainer(logprobs, theirs)
            mask = given["mask"]
            inputs = {
                "prompt_ids": torch.zeros(mask.shape[0], 1, dtype=torch.long),
                "prompt_mask": torch.ones(mask.shape[0], 1),
                "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
                "completion_mask": mask,
                "advantages": given["advantages"][:, 0],
                "old_per_token_logps": given["old"],
                "ref_per_token_logps": given["reference"],
                "sampling_per_token_logps": given["rollout"],
                "num_items_in_batch": mask.sum(),
            }
            if trainer.use_vllm:
                inputs["importance_sampling_ratio"] = _trl_weights(given, trainer)
            loss = GRPOTrainer._compute_loss(trainer, None, inputs)
            yield case(f"trl {json.dumps(theirs)}", spread, ours, loss, logprobs)


def _trl_trainer(logprobs: torch.Tensor, options: dict[str, Any]) -> Any:
    from trl.trainer.grpo_trainer import GRPOTrainer

    arguments = {
        "delta": options.get("delta"),
        "use_bias_correction_kl": False,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
        "steps_per_generation": 1,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing_kwargs": None,
        "per_device_train_batch_size": len(LENGTHS),
    }
    settings = {
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
    } | options
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
    )
    return SimpleNamespace(
        **settings,
        args=SimpleNamespace(**arguments),
        accelerator=accelerator,
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        use_vllm="vllm_importance_sampling_mode" in options,
        vllm_importance_sampling_correction="vllm_importance_sampling_mode" in options,
        current_gradient_accumulation_steps=1,
        max_completion_length=16,
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
    )


def _trl_weights(given: dict[str, torch.Tensor], trainer: Any) -> torch.Tensor:
    """What `GRPOTrainer._generate_and_score_completions` makes of log-probs in the place of a model's and an engine's."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    rows, zeros = len(LENGTHS), [[0] * length for length in LENGTHS]
    sampled = [values[:length].tolist() for values, length in zip(given["rollout"], LENGTHS, strict=True)]
    scored = SimpleNamespace(
        **vars(trainer) | {"_get_per_token_logps_and_entropies": lambda *_, **__: (given["old"], None, None)},
        vllm_importance_sampling_clip_min=0.9 if trainer.vllm_importance_sampling_mode.endswith("mask") else None,
        vllm_importance_sampling_clip_max=1.1,
        environment_factories=None,
        environments=None,
        tools=None,
        mask_truncated_completions=False,
        pad_to_multiple_of=None,
        num_iterations=1,
        num_generations=2,
        multi_objective_aggregation="sum_then_normalize",
        scale_rewards="none",
        reward_weights=torch.ones(1),
        reward_func_names=["none"],
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _generate=lambda _: ([[0]] * rows, zeros, None, zeros, sampled, {}, None, None),
        _calculate_rewards=lambda *_: torch.zeros(rows, 1),
        _logs=defaultdict(list, rewards=defaultdict(list), extra=defaultdict(list)),
        _pending_extra_logs={},
        _pending_metrics={},
    )
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = GRPOTrainer._generate_and_score_completions(scored, [{"prompt": ""}] * rows)
    finally:
        torch.set_default_dtype(kept)
    return found["importance_sampling_ratio"]


# --- verl ---------------------------------------------------------------------------------------------------------------

NO_CLIP = {"kind": "r2vpo", "penalty": 0.0}
VERL_CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    (
        "vanilla",
        "token-mean",
        {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 3.0},
        {
            "loss": {"kind": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0},
            "aggregation": "token_mean",
        },
    ),
    (
        "vanilla",
        "seq-mean-token-sum",
        {"clip_ratio_c": 10.0},
        {"loss": {"kind": "ppo_clip", "dual_clip": 10.0}, "aggregation": "seq_mean_token_sum"},
    ),
    (
        "vanilla",
        "seq-mean-token-sum-norm",
        {"clip_ratio_c": 10.0},
        {
            "loss": {"kind": "ppo_clip", "dual_clip": 10.0},
            "aggregation": {"kind": "seq_mean_token_sum_norm", "length": max(LENGTHS)},
        },
    ),
    ("vanilla", "seq-mean-token-mean", {"clip_ratio_c": 10.0}, {"loss": {"kind": "ppo_clip", "dual_clip": 10.0}}),
    ("gspo", "seq-mean-token-mean", {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4}, {"loss": "gspo"}),
    (
        "cispo",
        "token-mean",
        {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28},
        {"loss": {"kind": "cispo", "clip_low": 0.2, "clip_high": 0.28}, "aggregation": "token_mean"},
    ),
    ("geo_mean", "seq-mean-token-mean", {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4}, {"loss": "gmpo"}),
    ("sapo", "seq-mean-token-mean", {}, {"loss": "sapo"}),
    ("gpg", "token-mean", {}, {"loss": "reinforce", "aggregation": "token_mean"}),
    (
        "clip_cov",
        "token-mean",
        # Nothing is clipped: verl's mask leaves clipped tokens alone, which has no gradient and another value.
        {
            "clip_ratio_low": 0.99,
            "clip_ratio_high": 100.0,
            "policy_loss": {"clip_cov_ratio": 0.9, "clip_cov_lb": 0.5, "clip_cov_ub": 5.0},
        },
        {
            "loss": {"kind": "ppo_clip", "clip_low": 0.99, "clip_high": 100.0},
            "aggregation": "token_mean",
            "masks": [{"kind": "clip_cov", "share": 0.9, "low": 0.5, "high": 5.0}],
        },
    ),
    (
        "kl_cov",
        "token-mean",
        {"policy_loss": {"kl_cov_ratio": 0.2, "ppo_kl_coef": 0.7}},
        {"loss": NO_CLIP, "aggregation": "token_mean", "masks": [{"kind": "kl_cov", "share": 0.2, "penalty": 0.7}]},
    ),
]
"""Loss, aggregation and options of verl's actor, and those of ours."""
VERL_CORRECTIONS = [
    ({"rollout_is": "token", "rollout_is_threshold": 1.1}, {"kind": "tis", "cap": 1.1}),
    ({"rollout_is": "sequence", "rollout_is_threshold": 1.1}, {"kind": "tis", "level": "sequence", "cap": 1.1}),
    ({"rollout_is": "token", "rollout_is_threshold": "0.9_1.1"}, {"kind": "icepop", "low": 0.9, "high": 1.1}),
    ({"rollout_is": "sequence", "rollout_is_threshold": "0.9_1.1"}, {"kind": "mis", "low": 0.9, "high": 1.1}),
    ({"rollout_is": "token", "rollout_is_threshold": 1e9}, {"kind": "decoupled_ppo"}),
]
"""Options of verl's correction for the rollout engine, and ours; the last one's threshold is never reached."""
VERL_KL = {"k1": "k1", "k2": "k2", "k3": "k3", "k3+": "k3_k2"}


def verl_cases() -> Iterator[dict[str, Any]]:
    """Calls the registered policy losses, the corrections, and the KL estimators."""
    from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn, kl_penalty
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
    from verl.workers.config import ActorConfig
    from verl.workers.config.actor import PolicyLossConfig

    for name, aggregation, options, ours in VERL_CASES:
        policy_loss = PolicyLossConfig(**options.get("policy_loss", {}))
        plain = {key: value for key, value in options.items() if key != "policy_loss"}
        config = ActorConfig(strategy="fsdp", use_dynamic_bsz=True, rollout_n=1, policy_loss=policy_loss, **plain)
        for spread in SPREADS:
            given = tensors(spread)
            logprobs = given["logprobs"].requires_grad_()
            loss, _ = get_policy_loss_fn(name)(
                old_log_prob=given["old"],
                log_prob=logprobs,
                advantages=given["advantages"],
                response_mask=given["mask"],
                loss_agg_mode=aggregation,
                config=config,
            )
            yield case(f"verl {name} {aggregation} {json.dumps(options)}", spread, ours, loss, logprobs)
    for options, correction in VERL_CORRECTIONS:
        for spread in SPREADS:
            given = tensors(spread)
            logprobs = given["logprobs"].requires_grad_()
            weights, _ = compute_rollout_correction_weights(given["old"] - given["rollout"], given["mask"], **options)
            loss, _ = get_policy_loss_fn("vanilla")(
                old_log_prob=given["old"],
                log_prob=logprobs,
                advantages=given["advantages"],
                response_mask=given["mask"],
                loss_agg_mode="token-mean",
                config=ActorConfig(strategy="fsdp", use_dynamic_bsz=True, rollout_n=1, clip_ratio_c=1e9),
                rollout_is_weights=weights,
            )
            ours = {"loss": "ppo_clip", "aggregation": "token_mean", "correction": correction}
            yield case(f"verl correction {json.dumps(options)}", spread, ours, loss, logprobs)
    for theirs, estimator in VERL_KL.items():
        for spread in SPREADS:
            given = tensors(spread)
            logprobs = given["logprobs"].requires_grad_()
            penalties = kl_penalty(logprobs, given["reference"], theirs) - given["advantages"] * logprobs
            loss = agg_loss(penalties, given["mask"], "token-mean")
            ours = {"loss": "reinforce", "aggregation": "token_mean", "kl": {"coef": 1.0, "estimator": estimator}}
            yield case(f"verl kl_penalty {theirs}", spread, ours, loss, logprobs)


def record(library: str) -> dict[str, Any]:
    """The arrays, and every case on them."""
    found = list(trl_cases() if library == "trl" else verl_cases())
    arrays = {
        spread: {name: values.tolist() for name, values in drawn(size).items()} for spread, size in SPREADS.items()
    }
    return {
        "library": library,
        "version": version(library),
        "torch": torch.__version__,
        "arrays": arrays,
        "cases": found,
    }


if __name__ == "__main__":
    path = Path(__file__).with_name(f"losses_{sys.argv[1]}.json")
    path.write_text(json.dumps(record(sys.argv[1])) + "\n")
