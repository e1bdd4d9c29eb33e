"""The learner's step beside TRL's, a bare torch step, and an earlier checkout of this one: `python -m benchmarks.learner --out FILE`.

Every side trains the same policy on the same samples (16 prompts of 64 tokens, 8 completions each, none shorter than the others, in
float32), in turns in one run; what is reported are medians of CPU seconds and of wall time, and their ratios. Sides:

    ours         the whole step of one rank with default options        compiled    the same with learner.memory.compile
    unshared     the same with learner.share_prompt: false              bare        torch alone on rows of one length
    before       the checkout of --before, with default options         default, tuned    TRL without generation (`trl_side.py`)
"""

import argparse
import json
import math
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.figures import Figure, figure, write_figures
from benchmarks.learner_side import Spec
from benchmarks.turns import Side

HERE = Path(__file__).resolve().parent
PROMPTS, COMPLETIONS, PROMPT_TOKENS = 16, 8, 64
SHAPES: dict[str, dict[str, Any]] = {
    "1.1M": {"num_hidden_layers": 5, "hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4},
    "6.4M": {"num_hidden_layers": 8, "hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 8},
}
TOKENIZER = HERE.parent / "deploy/recipes/cold_start/policy"
SIDES = ("ours", "compiled", "unshared", "before", "bare", "default", "tuned")
OF_BEFORE = {32: 0.63, 128: 0.5, 512: 0.5}
"""What the learner may take of the seconds of its version before tries, by tokens of a completion."""


def write_policy(directory: Path, shape: str) -> str:
    """A random Qwen3 of one of the shapes, with the tokenizer of a recipe."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    size = SHAPES[shape]
    config = Qwen3Config(
        **size,
        vocab_size=512,
        num_key_value_heads=size["num_attention_heads"],
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def measure(spec: Spec, sides: list[str], threads: int, rounds: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Of each side the median CPU and wall seconds of a step, after two that warm up."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = []
        for name in sides:
            checkout = arguments.before if name == "before" else HERE.parent
            python = arguments.trl_python if name in ("default", "tuned") else sys.executable
            command = [python, "-P", str(HERE / "learner_side.py"), name, spec.text()]
            running.append(stack.enter_context(Side(name, command, logs / name, threads, PYTHONPATH=str(checkout))))
        for turn in range(2 + rounds):
            for side in running:
                took = side.step()
                if turn >= 2:
                    times[side.name].append(took)
    return {name: {key: median(row[key] for row in rows) for key in rows[0]} for name, rows in times.items()}


def ratios(found: dict[str, Any], about: str, tokens: int) -> list[Figure]:
    """Seconds of a side, and how they compare: on one machine in one run."""
    figures = [figure(f"{about}, {name}, CPU", row["cpu_s"], "s") for name, row in found.items()]
    for name in ("ours", "compiled"):
        for other in ("before", "bare", "default", "tuned"):
            if name in found and other in found:
                target = OF_BEFORE.get(tokens) if other == "before" else None
                for kind in ("cpu", "wall"):
                    value = found[name][f"{kind}_s"] / found[other][f"{kind}_s"]
                    figures.append(figure(f"{about}, {name} / {other}, {kind}", value, "1", target=target))
    if "ours" in found and "unshared" in found:
        bound = COMPLETIONS * (PROMPT_TOKENS + tokens) / (PROMPT_TOKENS + COMPLETIONS * tokens)
        gain = found["unshared"]["cpu_s"] / found["ours"]["cpu_s"]
        figures.append(figure(f"{about}, gain of sharing / its bound {bound:.2f}", gain / bound, "1", "higher", 0.9))
    return figures


def growth(found: dict[int, dict[str, Any]], about: str) -> list[Figure]:
    """How much longer a step takes for each doubling of the completions, up to the longest."""
    figures = []
    for few, many in zip(sorted(found)[:-1], sorted(found)[1:], strict=True):
        for name in ("ours", "compiled", "before"):
            if name in found[few] and name in found[many]:
                value = (found[many][name]["cpu_s"] / found[few][name]["cpu_s"]) ** (1 / math.log2(many / few))
                target = None if name == "before" else 2.2
                figures.append(
                    figure(f"{about}, {name}, growth a doubling, {few} to {many} tokens", value, "1", target=target)
                )
    return figures


def padding() -> list[Figure]:
    """Share of computed tokens that are padding, at lognormal lengths (mean 300, at most 2,000): ours, and in rows of eight."""
    import torch

    from actors.rollout.sample import Sample
    from learner.aggregations import SeqMeanTokenMean
    from learner.batching.pack import count, pack
    from learner.model.recurrence import PathRows

    rng = np.random.default_rng(0)
    groups = []
    for number in range(64):
        prompt = rng.integers(0, 1000, PROMPT_TOKENS)
        samples = []
        for index in range(COMPLETIONS):
            size = min(2000, 1 + int(rng.lognormal(math.log(300) - 0.5, 1.0)))
            ids = np.concatenate([prompt, rng.integers(0, 1000, size)]).astype(np.int32)
            mask = np.arange(len(ids)) >= PROMPT_TOKENS
            logprobs, versions = np.zeros(len(ids), np.float32), np.where(mask, 0, -1).astype(np.int32)
            samples.append(Sample(str(number), index, ids, mask, logprobs, versions, 1.0))
        groups.append((tuple(samples), rng.normal(size=COMPLETIONS)))
    prefixes = sum(
        len({tuple(sample.token_ids[:n]) for sample in samples for n in range(1, len(sample.token_ids))})
        for samples, _ in groups
    )
    batches = pack(groups, SeqMeanTokenMean(), count(groups), 0, True, 8192)
    computed = sum(len(batch.input_ids) for batch in batches)
    lengths = [len(sample.token_ids) - 1 for samples, _ in groups for sample in samples]
    rows = sum(8 * max(lengths[i : i + 8]) for i in range(0, len(lengths), 8))
    along = sum(each.numel() for batch in batches for each in PathRows.of(batch.segments, torch.device("cpu")).rows)
    return [
        figure("padded or repeated tokens, lognormal lengths", 1 - prefixes / computed, "1", target=0.0),
        figure("padded tokens in layers that carry a state, lognormal lengths", 1 - sum(lengths) / along, "1"),
        figure("padded tokens in rows of eight samples, lognormal lengths", 1 - sum(lengths) / rows, "1"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--before", type=Path, help="a checkout of this project; without it there is no such side")
    parser.add_argument("--trl-python", default=sys.executable, help="of an environment with TRL")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    sides = [name for name in arguments.sides if name != "before" or arguments.before]
    load = os.getloadavg()[0]
    figures, every = padding(), []
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory() as directory:
            policy = write_policy(Path(directory), shape)
            for threads in arguments.threads:
                by_tokens = {}
                for tokens in arguments.tokens:
                    spec = Spec(policy, PROMPTS, COMPLETIONS, PROMPT_TOKENS, tokens, 350)
                    about = f"{shape}, {tokens} tokens, {threads} thread{'s' * (threads > 1)}"
                    by_tokens[tokens] = measure(spec, sides, threads, arguments.rounds, arguments)
                    every.append({"shape": shape, "tokens": tokens, "threads": threads, "sides": by_tokens[tokens]})
                    print(json.dumps(every[-1]), flush=True)
                    figures += ratios(by_tokens[tokens], about, tokens)
                figures += growth(by_tokens, f"{shape}, {threads} thread{'s' * (threads > 1)}")
    write_figures(arguments.out, figures, seconds=every, rounds=arguments.rounds, load_before=load)


if __name__ == "__main__":
    main()
