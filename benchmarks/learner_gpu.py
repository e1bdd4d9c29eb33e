"""The learner on a GPU, without Ray or vLLM: tokens/s, MFU and peak memory, each means of speed switched off in turn.

    python3 -m benchmarks.learner_gpu --out learner_gpu.json                     # 1.5B at 4k, 16k and 32k tokens a step
    python3 -m benchmarks.learner_gpu --shape 7b --tokens 16384 --out 7b.json
    python3 -m benchmarks.learner_gpu --shape tiny --tokens 512 --device cpu --out smoke.json

MFU = tokens/s * FLOPs per token / peak, where FLOPs per token = 6 * (parameters without the input embedding) + 6 * layers *
query width * mean length of a sample: forward and backward of the products and of causal attention. What is computed twice
(checkpointing, the head's chunks) is not counted, and a prompt that several samples share counts once.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM, Qwen2Config

from actors.rollout.sample import Sample
from learner.batching.pack import Totals, count, pack
from learner.batching.packed import PackedBatch
from learner.config import LearnerConfig, MemoryConfig
from learner.losses.objective import Objective
from learner.model.policy import Policy, choose_head, freeze, shard, trainable_parameters
from learner.optim import AdamW
from learner.optim.optimizers import Optimizers

SHAPES = {
    "tiny": Qwen2Config(vocab_size=512, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2),
    "1.5b": Qwen2Config(vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True),
    "7b": Qwen2Config(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4),
}  # fmt: skip
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0}
"""Dense bfloat16, from the vendors' sheets."""
PROMPT, GROUP = 512, 4
"""Tokens of a prompt, and completions of each."""


@dataclass(frozen=True, slots=True)
class Side:
    """One way to run the same step."""

    name: str
    config: LearnerConfig


def sides(device: str, tokens: int, shape: str) -> list[Side]:
    """Everything on, then each switched off. What has no compiler or no GPU is off everywhere."""
    gpu = device == "cuda"
    memory = MemoryConfig(activation_checkpointing="layer", compile=gpu, offload_optimizer=shape == "7b")
    every = LearnerConfig(
        gpus=1 if gpu else 0,
        dtype="bfloat16" if gpu else "float32",
        microbatch_tokens=tokens,
        optimizer=AdamW(lr=1e-6),
        memory=memory,
    )

    def without(**changes: Any) -> LearnerConfig:
        return every.model_copy(update={"memory": memory.model_copy(update=changes)})

    made = [
        Side("everything", every),
        Side("without packing", every.model_copy(update={"share_prompt": False})),
        Side("without checkpointing", without(activation_checkpointing="none")),
        Side("without chunks in the head", without(head="chunked", logit_elements=2**62)),
    ]
    return [*made, Side("without compile", without(compile=False))] if gpu else made


def batch_of(tokens: int, vocabulary: int) -> list[tuple[tuple[Sample, ...], np.ndarray]]:
    """Groups of GROUP samples on prompts of PROMPT tokens (less in a small batch) that hold `tokens` unique tokens, about."""
    rng = np.random.default_rng(0)
    prompt = min(PROMPT, tokens // 8)
    completion = max(1, min(tokens // 8, 2048) - prompt // GROUP)
    groups = max(1, tokens // (prompt + GROUP * completion))
    made = []
    for number in range(groups):
        shared = rng.integers(0, vocabulary, prompt)
        samples = []
        for index in range(GROUP):
            ids = np.concatenate([shared, rng.integers(0, vocabulary, completion)]).astype(np.int32)
            mask = np.arange(len(ids)) >= prompt
            logprobs = np.where(mask, -1.0, 0.0).astype(np.float32)
            versions = np.where(mask, 0, -1).astype(np.int32)
            samples.append(Sample(f"{number}", index, ids, mask, logprobs, versions, temperature=1.0))
        made.append((tuple(samples), rng.normal(size=GROUP)))
    return made


def flops_per_token(config: Any, parameters: int, length: float) -> float:
    """See the module's head."""
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return 6.0 * (parameters - embedding) + 6.0 * config.num_hidden_layers * config.hidden_size * length


def measure(
    side: Side, shape: str, tokens: int, device: torch.device, steps: int, peak: float | None
) -> dict[str, Any]:
    """Median seconds of a step after two that warm up, and what they amount to."""
    model_config = SHAPES[shape]
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    policy = Policy(model, side.config.share_prompt, False, side.config.memory.logit_elements)
    freeze(policy, ".*")
    shard(policy, side.config, init_device_mesh(device.type, (1,)))
    choose_head(policy, side.config, device)
    named = trainable_parameters(policy)
    optimizers = Optimizers(model, named, side.config.optimizer, side.config.schedule, 100, side.config.memory.offload_optimizer)  # fmt: skip
    objective = Objective(side.config)
    groups = batch_of(tokens, model_config.vocab_size)
    totals: Totals = count(groups)
    plan = pack(groups, side.config.aggregation, totals, 0, side.config.share_prompt, tokens)
    unique = sum(len(batch.input_ids) for batch in batch_plan(groups, side.config, totals, tokens))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(2 + steps):
        started = time.perf_counter()
        loss = one_step(policy, objective, optimizers, plan, device)
        seconds.append(time.perf_counter() - started)
    median = float(np.median(seconds[2:]))
    length = float(np.mean([len(sample.token_ids) for samples, _ in groups for sample in samples]))
    flops = flops_per_token(model_config, parameters, length)
    row = {"side": side.name, "shape": shape, "tokens": unique, "step_s": median, "tokens_per_s": unique / median}
    row |= {"loss": loss, "mfu": None if peak is None else unique / median * flops / (peak * 1e12)}
    row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return row


def batch_plan(groups: Any, config: LearnerConfig, totals: Totals, tokens: int) -> list[PackedBatch]:
    """Microbatches in which every prompt stands once: the tokens that all sides are credited with."""
    return pack(groups, config.aggregation, totals, 0, True, tokens)


def one_step(
    policy: Policy, objective: Objective, optimizers: Optimizers, plan: list[PackedBatch], device: torch.device
) -> float:
    """Forward, backward and optimiser step; its loss, read at the end."""
    total = torch.zeros((), device=device)
    for packed in plan:
        batch = packed.to(device)
        loss, _ = objective(batch, *policy(batch))
        loss.backward()
        total += loss.detach()
    optimizers.step()
    return float(total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, default="1.5b")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384, 32768])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--peak-tflops", type=float, help="of this device in bfloat16, where it is none of the known ones"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA here: the result is not measured (--device cpu --shape tiny tries the program)")
    device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak = arguments.peak_tflops or next((value for key, value in PEAK_TFLOPS.items() if key in name), None)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    rows = []
    for tokens in arguments.tokens:
        for side in sides(device.type, tokens, arguments.shape):
            try:
                row = measure(side, arguments.shape, tokens, device, arguments.steps, peak)
            except torch.OutOfMemoryError:
                row = {"side": side.name, "shape": arguments.shape, "tokens": tokens, "out_of_memory": True}
            rows.append(row)
            print(json.dumps(row))
            if device.type == "cuda":
                torch.cuda.empty_cache()
    dist.destroy_process_group()
    machine = {"device": name, "peak_tflops": peak}
    arguments.out.write_text(
        json.dumps({"machine": machine, "versions": {"torch": torch.__version__}, "rows": rows}, indent=1),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
