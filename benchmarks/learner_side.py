"""One side of `benchmarks/learner.py`: one learner, with the same policy and the same samples as the others, a step at a time.

usage: python -P benchmarks/learner_side.py SIDE SPEC, where SPEC is the JSON of a `Spec`. `ours` imports the learner of the first
entry of PYTHONPATH, which may be another checkout; the modules of the benchmark come from beside this file.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
LR = 1e-5


@dataclass(frozen=True, slots=True)
class Spec:
    """What all sides compute on: `prompts` groups of `completions` samples; samples of the same lengths for all."""

    policy: str
    prompts: int
    completions: int
    prompt_tokens: int
    completion_tokens: int
    vocabulary: int

    def text(self) -> str:
        return json.dumps(asdict(self))

    def draw(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids of prompts [P, p] and completions [P, G, c], and advantages [P, G]."""
        rng = np.random.default_rng(0)
        prompts = rng.integers(3, self.vocabulary, (self.prompts, self.prompt_tokens))
        completions = rng.integers(3, self.vocabulary, (self.prompts, self.completions, self.completion_tokens))
        return prompts, completions, rng.normal(size=(self.prompts, self.completions))


def beside(name: str) -> Any:
    """A module of this benchmark, whichever checkout `benchmarks` would be."""
    spec = importlib.util.spec_from_file_location(f"benchmarks.{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def ours(spec: Spec, **options: Any) -> None:
    """The learner's whole step on one rank: packing, log-probs, loss, gradients, optimiser, metrics. options: of its config."""
    from actors.rollout.sample import Sample
    from learner.config import LearnerConfig
    from learner.job import LearnerJob
    from learner.optim import AdamW
    from learner.rank import LearnerRank, set_threads

    set_threads(threads())
    config = LearnerConfig(optimizer=AdamW(lr=LR), **options)
    rank = LearnerRank(config, LearnerJob(spec.policy, 1000), 0, 1)
    rank.setup("127.0.0.1", 0, timeout_s=60.0)
    prompts, completions, advantages = spec.draw()
    groups = []
    for number, (prompt, tails) in enumerate(zip(prompts, completions, strict=True)):
        samples = []
        for index, tail in enumerate(tails):
            ids = np.concatenate([prompt, tail]).astype(np.int32)
            mask = np.arange(len(ids)) >= len(prompt)
            logprobs = np.where(mask, -6.0, 0.0).astype(np.float32)
            samples.append(Sample(str(number), index, ids, mask, logprobs, np.where(mask, 0, -1).astype(np.int32), 1.0))
        groups.append((tuple(samples), advantages[number]))
    for step, _ in enumerate(beside("turns").turns()):
        rank.step([groups], step)


def bare(spec: Spec) -> None:
    """What is left without a trainer: rows of one length, so that nothing is padded; plain softmax, AdamW, no metrics."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads())
    model = AutoModelForCausalLM.from_pretrained(spec.policy, dtype=torch.float32, attn_implementation="sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    prompts, completions, advantages = spec.draw()
    rows = torch.from_numpy(np.concatenate([np.repeat(prompts[:, None], spec.completions, 1), completions], 2))
    rows, scores = rows.flatten(0, 1), torch.from_numpy(advantages).float().flatten()[:, None]
    size = max(1, 8192 // rows.shape[1])
    for _ in beside("turns").turns():
        for start in range(0, len(rows), size):
            ids = rows[start : start + size]
            logits = model(ids[:, :-1], logits_to_keep=spec.completion_tokens, use_cache=False).logits
            targets = ids[:, -spec.completion_tokens :, None]
            logprobs = logits.log_softmax(-1).gather(2, targets)[..., 0]
            ratio = (logprobs - logprobs.detach()).exp()
            (-(ratio * scores[start : start + size]).mean(1).sum() / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def trl(spec: Spec, kind: str) -> None:
    """TRL's step with completions that are there already: everything but generation."""
    import torch

    torch.set_num_threads(threads())
    beside("turns")
    side = beside("trl_side")
    prompts, completions, advantages = spec.draw()
    taken: dict[str, int] = {}

    def rollout(names: list[str], trainer: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"prompt_ids": [], "completion_ids": [], "logprobs": None}
        for name in names:
            group, sample = int(name) % spec.prompts, taken.get(name, 0) % spec.completions
            taken[name] = sample + 1
            found["prompt_ids"].append(prompts[group].tolist())
            found["completion_ids"].append(completions[group, sample].tolist())
        return found

    def reward(**given: Any) -> list[float | None]:
        values: list[float | None] = np.resize(advantages.ravel(), len(given["completions"])).tolist()
        return values

    shape = side.Shape(spec.prompts, spec.completions, spec.prompt_tokens, spec.completion_tokens)
    names = [str(number) for number in range(spec.prompts)]
    side.make_trainer(spec.policy, names, reward, shape, kind, rollout, learning_rate=LR).train()


def threads() -> int:
    """Of the products."""
    return int(os.environ["OMP_NUM_THREADS"])


SIDES: dict[str, Callable[[Spec], None]] = {
    "ours": ours,
    "before": ours,
    "compiled": partial(ours, memory={"compile": True}),
    "unshared": partial(ours, share_prompt=False),
    "bare": bare,
    "default": partial(trl, kind="default"),
    "tuned": partial(trl, kind="tuned"),
}

if __name__ == "__main__":
    SIDES[sys.argv[1]](Spec(**json.loads(sys.argv[2])))
