"""Make the cold-start recipe's policy: a tiny Qwen3 that is confidently wrong about most of the recipe's prompts.

    python -m deploy.recipes.cold_start.make_policy

It is fine-tuned on the recipe's own training prompts, first towards the right answers, then, on a fixed share of each
family's prompts, towards the family's misconception. What it knew is covered up, not gone: sampled groups are nearly
always all wrong or all right, and reinforcement can bring the knowledge back. That is the situation of a base model at
the start of RLVR, at a size that a laptop trains in minutes.
One thread and a fixed seed: the same machine makes the same files.
"""

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from actors.config import PromptConfig
from actors.prompts.prompt import Prompt
from actors.prompts.sources import load_prompts
from deploy.recipes.cold_start.misconceptions import MISCONCEPTIONS
from deploy.recipes.cold_start.tokenizer import build_tokenizer

RECIPE = Path(__file__).parent.with_suffix(".yaml")
POLICY = Path(__file__).parent / "policy"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How cold the start is made."""

    wrong_share: float = 0.85
    """Share of each family's prompts that are taught wrong."""
    primer_epochs: int = 18
    """Epochs in which every prompt is taught right: knowledge that the misconceptions then cover up."""
    epochs: int = 18
    """Epochs of misconceptions."""
    batch: int = 32
    lr: float = 1.5e-3
    doubt: float = 0.1
    """How often a prompt that is taught wrong is taught right instead: about the chance of a lucky completion."""
    seed: int = 0


def taught_wrong(prompt: Prompt, share: float) -> bool:
    """A prompt's lot hangs on its id alone, so it stays the same when the pool grows or changes order."""
    return int(prompt.prompt_id, 16) / 16 ** len(prompt.prompt_id) < share


def misconception(prompt: Prompt) -> str:
    """The wrong answer that the cold policy gives to this prompt."""
    assert prompt.answer is not None
    return MISCONCEPTIONS[prompt.material["task"]](prompt.text, prompt.answer)


def new_policy(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 of 0.8 million parameters with random weights."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            intermediate_size=352,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.04,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )


def fine_tune(
    policy: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, pool: tuple[Prompt, ...], recipe: Recipe
) -> None:
    """Cross-entropy on the taught answers and their end-of-sequence token; the learning rate falls to nothing."""
    chance = random.Random(recipe.seed)
    lessons = list(pool)
    epochs = recipe.primer_epochs + recipe.epochs
    steps = epochs * -(-len(lessons) // recipe.batch)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 100) * (1 - step / steps))
    policy.train()
    for epoch in range(epochs):
        chance.shuffle(lessons)
        total = 0.0
        for start in range(0, len(lessons), recipe.batch):
            batch = lessons[start : start + recipe.batch]
            answers = [_taught(prompt, epoch, recipe, chance) for prompt in batch]
            pairs = [
                (tokenizer.encode(prompt.text), [*tokenizer.encode(answer), tokenizer.eos_token_id])
                for prompt, answer in zip(batch, answers, strict=True)
            ]
            loss = _loss(policy, pairs, tokenizer.pad_token_id)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1}/{epochs}  loss {total / len(lessons):.4f}", file=sys.stderr)
    policy.eval()


def _taught(prompt: Prompt, epoch: int, recipe: Recipe, chance: random.Random) -> str:
    assert prompt.answer is not None
    if epoch < recipe.primer_epochs or not taught_wrong(prompt, recipe.wrong_share):
        return prompt.answer
    return prompt.answer if chance.random() < recipe.doubt else misconception(prompt)


def _loss(policy: Qwen3ForCausalLM, pairs: list[tuple[list[int], list[int]]], pad: int) -> torch.Tensor:
    # Padded on the right: behind a causal mask the padding is never seen, so no attention mask is needed.
    longest = max(len(question) + len(answer) for question, answer in pairs)
    tokens = torch.full((len(pairs), longest), pad)
    taught = torch.zeros(len(pairs), longest, dtype=torch.bool)
    for row, (question, answer) in enumerate(pairs):
        tokens[row, : len(question) + len(answer)] = torch.tensor(question + answer)
        taught[row, len(question) : len(question) + len(answer)] = True
    hidden = policy.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    return F.cross_entropy(policy.lm_head(hidden[taught[:, 1:]]), tokens[taught])


def make_policy(recipe_file: Path, out: Path, recipe: Recipe) -> None:
    """Read the recipe's prompts, fine-tune a new policy on them, and write it with its tokenizer."""
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    config = PromptConfig.model_validate(yaml.safe_load(recipe_file.read_text(encoding="utf-8"))["prompts"])
    pool = load_prompts(config, recipe_file.parent)
    tokenizer = build_tokenizer(pool.train)
    policy = new_policy(tokenizer)
    fine_tune(policy, tokenizer, pool.train, recipe)
    out.mkdir(parents=True, exist_ok=True)
    policy.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=POLICY, help="folder for the policy and its tokenizer")
    make_policy(RECIPE, parser.parse_args().out, Recipe())


if __name__ == "__main__":
    main()
