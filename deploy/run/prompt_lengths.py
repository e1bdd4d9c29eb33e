"""Prompts that the policy cannot be given as they are, are found before anything starts."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from actors.prompts.pool import PromptPool
from actors.prompts.prompt import Prompt
from actors.prompts.renderer import all_prompt_ids, load_tokenizer, prompt_ids, stop_token_ids
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError

log = logging.getLogger(__name__)

AT_ONCE = 1024
"""Prompts; what a fast tokenizer takes together, it takes on all cores."""


def refuse_unfit_prompts(config: RunConfig, pool: PromptPool, vocabulary: int) -> frozenset[str]:
    """Raise ConfigError for a policy without a tokenizer, and for a prompt or stop text that does not become what it should.

    That is: 1 to `prompts.max_tokens` tokens, all of which have embeddings, with one beginning of sequence at most.
    vocabulary: rows of the policy's embeddings.    Returns the ids of prompts that are too long, where they are to be left out.
    """
    tokenizer = _tokenizer(config)
    try:
        stops = stop_token_ids(tokenizer, config.sampling.stop)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _refuse_unembedded(tokenizer, stops, vocabulary, "sampling.stop names")
    most = config.prompts.max_tokens
    longest, at, skipped = 0, None, set()
    for prompt, ids in _openings(tokenizer, (*pool.train, *pool.held_out), config):
        _refuse_odd(tokenizer, prompt, ids, vocabulary)
        if len(ids) > most and config.prompts.too_long == "skip":
            skipped.add(prompt.prompt_id)
        elif len(ids) > longest:
            longest, at = len(ids), prompt
    if at is not None and longest > most:
        raise ConfigError(
            f"prompts.max_tokens: {most} is less than the {longest} tokens of {_named(at)}; raise it, filter the source, or "
            "leave such prompts out with prompts.too_long: skip"
        )
    return frozenset(skipped)


def fitting(config: RunConfig, pool: PromptPool) -> PromptPool:
    """The prompts that a run of this recipe goes on with: all, or under `prompts.too_long: skip` those that fit. Looks at nothing else."""
    if config.prompts.too_long != "skip":
        return pool
    most, prompts = config.prompts.max_tokens, (*pool.train, *pool.held_out)
    openings = _openings(_tokenizer(config), prompts, config)
    return without(pool, frozenset(prompt.prompt_id for prompt, ids in openings if len(ids) > most), most)


def without(pool: PromptPool, too_long: frozenset[str], most: int) -> PromptPool:
    """The other prompts of a pool, with a warning. too_long: ids of those of more than `most` tokens."""
    if not too_long:
        return pool
    log.warning("%d prompts of more than prompts.max_tokens (%d) are left out", len(too_long), most)
    return PromptPool(
        train=tuple(prompt for prompt in pool.train if prompt.prompt_id not in too_long),
        held_out=tuple(prompt for prompt in pool.held_out if prompt.prompt_id not in too_long),
    )


def _refuse_odd(tokenizer: Any, prompt: Prompt, ids: Sequence[int], vocabulary: int) -> None:
    if not ids:
        raise ConfigError(f"prompts: {_named(prompt)} is no token at all; give it a text, or filter it out")
    if max(ids) >= vocabulary:
        _refuse_unembedded(tokenizer, ids, vocabulary, f"{_named(prompt)} has")
    if tokenizer.bos_token_id is not None and list(ids[:2]) == [tokenizer.bos_token_id] * 2:
        raise ConfigError(
            f"prompts: {_named(prompt)} begins with {tokenizer.bos_token!r} twice, once of its own and once of the tokenizer's; "
            "leave it out of the text, or let prompts.chat apply the template"
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
    for option in config.prompts.chat_options:
        # Jinja passes over what a template does not ask for; here it is a mistake that nobody would see.
        if not re.search(rf"\b{re.escape(option)}\b", str(tokenizer.chat_template)):
            raise ConfigError(f"prompts.chat_options: the chat template of {config.policy} knows no `{option}`")
    return tokenizer


def _openings(tokenizer: Any, prompts: Sequence[Prompt], config: RunConfig) -> Iterator[tuple[Prompt, Sequence[int]]]:
    """Each prompt with its tokens, many at a time; one by one only to say which of them a template fails for."""
    chat, options = config.prompts.chat, config.prompts.chat_options
    for start in range(0, len(prompts), AT_ONCE):
        some = prompts[start : start + AT_ONCE]
        try:
            found = all_prompt_ids(tokenizer, [(prompt.text, prompt.before) for prompt in some], chat, options)
        # As below: whatever a template raises.
        except Exception:
            found = [_ids(tokenizer, prompt, chat, options) for prompt in some]
        yield from zip(some, found, strict=True)


def _ids(tokenizer: Any, prompt: Prompt, chat: bool, options: Mapping[str, Any]) -> tuple[int, ...]:
    if prompt.before and not chat:
        raise ConfigError(f"prompts: {_named(prompt)} is a conversation, which needs prompts.chat: true")
    try:
        return prompt_ids(tokenizer, prompt.text, chat, prompt.before, options)
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
