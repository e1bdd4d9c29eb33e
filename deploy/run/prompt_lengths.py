"""Prompts that are too long are found before anything starts."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from actors.prompts.pool import PromptPool
from actors.prompts.renderer import prompt_ids
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError


def refuse_long_prompts(config: RunConfig, pool: PromptPool) -> None:
    """Raise ConfigError for a prompt of more than `prompts.max_tokens`, and for a policy that has no tokenizer to count with."""
    prompts = [*pool.train, *pool.held_out]
    lengths = _lengths(config, [prompt.text for prompt in prompts])
    longest, prompt = max(zip(lengths, prompts, strict=True), key=lambda pair: pair[0])
    if longest > config.prompts.max_tokens:
        raise ConfigError(
            f"prompts.max_tokens: {config.prompts.max_tokens} is less than the {longest} tokens of a prompt of source "
            f"{prompt.source} ({prompt.text[:60]!r}…); raise it or filter the source"
        )


def _lengths(config: RunConfig, texts: Sequence[str]) -> list[int]:
    chat, vocabulary = config.prompts.chat, Path(config.policy) / "tokenizer.json"
    if vocabulary.exists() and not chat:  # no time at all, where transformers takes seconds to import
        return [len(each.ids) for each in Tokenizer.from_file(str(vocabulary)).encode_batch(list(texts))]
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(config.policy)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"policy: {config.policy} is no Hugging Face directory, and no model whose tokenizer can be had here ({reason})"
        ) from None
    if chat and not tokenizer.chat_template:
        raise ConfigError(f"prompts.chat: the tokenizer of {config.policy} has no chat template")
    return [len(prompt_ids(tokenizer, text, chat)) for text in texts]
