"""What both sides of `benchmarks/step.py` train: a random policy whose completions all have full length, its prompts, and a verifier."""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = 2160
PROMPT_WORDS = 24
PROMPTS = 512
PAD, EOS = 0, 1


@dataclass(frozen=True, slots=True)
class Task:
    """A policy, and how much is sampled of it in one step."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    tokens: int
    """Of every completion."""
    prompts: int = 16
    completions: int = 8
    """Of every prompt."""


SMALL_32 = Task("1.1M, 32 tokens", hidden=128, intermediate=352, layers=4, tokens=32)
SMALL_128 = Task("1.1M, 128 tokens", hidden=128, intermediate=352, layers=4, tokens=128)
LARGE_32 = Task("6.4M, 32 tokens", hidden=256, intermediate=736, layers=7, tokens=32)
TASKS = (SMALL_32, SMALL_128, LARGE_32)


def last_word_is_odd(_prompt: Any, completion: str) -> float:
    """The verifier: cheap, and unlike within most groups."""
    numbers = re.findall(r"w(\d+)", completion)
    return float(int(numbers[-1]) % 2) if numbers else 0.0


def make(task: Task, directory: Path) -> None:
    """Write `policy/` and `prompts.jsonl` into a directory. The same files every time."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *(f"w{number}" for number in range(WORDS - 2))]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    _random_policy(task).save_pretrained(directory / "policy")
    fast.save_pretrained(directory / "policy")
    drawn = random.Random(0)
    lines = [" ".join(drawn.choices(words[2:], k=PROMPT_WORDS)) for _ in range(PROMPTS)]
    rows = (json.dumps({"question": line, "answer": "odd"}) + "\n" for line in lines)
    (directory / "prompts.jsonl").write_text("".join(rows), encoding="utf-8")


def prompts(directory: Path) -> list[str]:
    """Those that `make` wrote."""
    lines = (directory / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


def _random_policy(task: Task) -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=WORDS,
        hidden_size=task.hidden,
        intermediate_size=task.intermediate,
        num_hidden_layers=task.layers,
        num_attention_heads=task.hidden // 32,
        num_key_value_heads=task.hidden // 32,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        dtype="float32",
    )
    policy = Qwen3ForCausalLM(config)
    with torch.no_grad():
        # One number of every hidden state is a constant that no layer writes to, and the two special tokens point against it:
        # none of them is ever sampled, so that every completion of both sides is as long as it may be.
        embeddings = policy.model.embed_tokens.weight
        embeddings[:, 0] = 1.0
        embeddings[[PAD, EOS]] = 0.0
        embeddings[[PAD, EOS], 0] = -20.0
        for layer in policy.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
    return policy
