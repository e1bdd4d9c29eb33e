"""Prompts that the policy cannot be given as they are, are found before anything starts."""

from collections.abc import Sequence
from typing import Any

from actors.prompts.pool import PromptPool
from actors.prompts.prompt import Prompt
from actors.prompts.renderer import load_tokenizer, prompt_ids, stop_token_ids
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError


def refuse_unfit_prompts(config: RunConfig, pool: PromptPool, vocabulary: int) -> None:
    """Raise ConfigError for a policy without a tokenizer, and for a prompt or stop text that does not become what it should.

    That is: 1 to `prompts.max_tokens` tokens, all of which have embeddings, with one beginning of sequence at most.
    vocabulary: rows of the policy's embeddings.
    """
    tokenizer = _tokenizer(config)
    try:
        stops = stop_token_ids(tokenizer, config.sampling.stop)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _refuse_unembedded(tokenizer, stops, vocabulary, "sampling.stop names")
    longest, at = 0, None
    for prompt in (*pool.train, *pool.held_out):
        ids = _ids(tokenizer, prompt, config.prompts.chat)
        if not ids:
            raise ConfigError(f"prompts: {_named(prompt)} is no token at all; give it a text, or filter it out")
        _refuse_unembedded(tokenizer, ids, vocabulary, f"{_named(prompt)} has")
        if tokenizer.bos_token_id is not None and list(ids[:2]) == [tokenizer.bos_token_id] * 2:
            raise ConfigError(
                f"prompts: {_named(prompt)} begins with {tokenizer.bos_token!r} twice, once of its own and once of the tokenizer's; "
                "leave it out of the text, or let prompts.chat apply the template"
            )
        if len(ids) > longest:
            longest, at = len(ids), prompt
    if at is not None and longest > config.prompts.max_tokens:
        raise ConfigError(
            f"prompts.max_tokens: {config.prompts.max_tokens} is less than the {longest} tokens of {_named(at)}; raise it or "
            "filter the source"
        )


def _tokenizer(config: RunConfig) -> Any:
    try:
        tokenizer = load_tokenizer(config.policy)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"policy: {config.policy} has no tokenizer that can be had here without running code of its own ({reason})"
        ) from None
    if config.prompts.chat and not tokenizer.chat_template:
        raise ConfigError(f"prompts.chat: the tokenizer of {config.policy} has no chat template")
    return tokenizer


def _ids(tokenizer: Any, prompt: Prompt, chat: bool) -> Sequence[int]:
    try:
        return prompt_ids(tokenizer, prompt.text, chat)
    # A template is a program that came with the policy, and may raise anything.
    except Exception as error:
        if not chat:
            raise
        raise ConfigError(
            f"prompts.chat: the chat template of {tokenizer.name_or_path} fails for {_named(prompt)}: "
            f"{type(error).__name__}: {error}; mend the template, or set prompts.chat to false"
        ) from None


def _refuse_unembedded(tokenizer: Any, ids: Sequence[int], vocabulary: int, what: str) -> None:
    for each in ids:
        if each >= vocabulary:
            raise ConfigError(
                f"policy: {what} the token {tokenizer.convert_ids_to_tokens(each)!r} ({each}), which lies beyond the {vocabulary} "
                "embeddings; resize the embeddings (model.resize_token_embeddings), or do without the token"
            )


def _named(prompt: Prompt) -> str:
    return f"a prompt of source {prompt.source} ({prompt.text[:60]!r}{'…' if len(prompt.text) > 60 else ''})"
