"""A Qwen3 of 0.8 million parameters, and how it is taught before a recipe trains it with rewards."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from actors.prompts.prompt import Prompt
from deploy.recipes.tiny.tokenizer import build_tokenizer

Lesson = tuple[str, str]
"""A prompt's text, and the answer that is taught for it."""

REPORT_EVERY = 100
"""Steps between two lines of progress."""


def make(
    out: Path, prompts: Sequence[Prompt], batches: Iterable[Sequence[Lesson]], steps: int, lr: float, seed: int
) -> None:
    """A new policy, taught, with its tokenizer, in the folder `out`.

    prompts: those whose wording becomes tokens.    batches: lessons of `steps` steps, drawn as they are taught.
    One thread and a fixed seed: the same machine makes the same files.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(prompts)
    policy = new_policy(tokenizer)
    fine_tune(policy, tokenizer, batches, steps, lr)
    out.mkdir(parents=True, exist_ok=True)
    policy.save_pretrained(out)
    tokenizer.save_pretrained(out)


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
    policy: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    batches: Iterable[Sequence[Lesson]],
    steps: int,
    lr: float,
) -> None:
    """Cross-entropy on the taught answers and their end-of-sequence token; the learning rate falls to nothing in `steps`."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 100) * (1 - step / steps))
    policy.train()
    total = 0.0
    for step, lessons in enumerate(batches, start=1):
        loss = _loss(policy, _tokens(tokenizer, lessons), tokenizer.pad_token_id)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % REPORT_EVERY == 0:
            print(f"step {step}/{steps}  loss {total / REPORT_EVERY:.4f}", file=sys.stderr)
            total = 0.0
    policy.eval()


@torch.no_grad()
def log_probs(
    policy: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, lessons: Sequence[Lesson], batch: int = 256
) -> torch.Tensor:
    """[N] log-probability that the policy, sampled at temperature 1, says exactly this answer and ends."""
    found = []
    for start in range(0, len(lessons), batch):
        pairs = _tokens(tokenizer, lessons[start : start + batch])
        tokens, taught = _padded(pairs, tokenizer.pad_token_id)
        logits = policy(input_ids=tokens[:, :-1], use_cache=False).logits
        said = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
        found.append(said.where(taught[:, 1:], 0.0).sum(1))
    return torch.cat(found)


def _tokens(tokenizer: PreTrainedTokenizerFast, lessons: Sequence[Lesson]) -> list[tuple[list[int], list[int]]]:
    return [
        (tokenizer.encode(question), [*tokenizer.encode(answer), tokenizer.eos_token_id])
        for question, answer in lessons
    ]


def _loss(policy: Qwen3ForCausalLM, pairs: list[tuple[list[int], list[int]]], pad: int) -> torch.Tensor:
    tokens, taught = _padded(pairs, pad)
    hidden = policy.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    return F.cross_entropy(policy.lm_head(hidden[taught[:, 1:]]), tokens[taught])


def _padded(pairs: list[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [N, longest], and which of them are taught. Padded on the right: behind a causal mask the padding is
    never seen, so no attention mask is needed."""
    longest = max(len(question) + len(answer) for question, answer in pairs)
    tokens = torch.full((len(pairs), longest), pad)
    taught = torch.zeros(len(pairs), longest, dtype=torch.bool)
    for row, (question, answer) in enumerate(pairs):
        tokens[row, : len(question) + len(answer)] = torch.tensor(question + answer)
        taught[row, len(question) : len(question) + len(answer)] = True
    return tokens, taught
