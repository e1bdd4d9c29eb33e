"""Between texts and the token ids that the policy reads and writes, exactly: what was sampled is never tokenised again."""

import importlib
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

Before = tuple[tuple[str, str], ...]
"""Role and content of each message that comes before a prompt's text."""
OPENINGS_KEPT = 4096
"""Openings whose token ids are remembered."""
_SAID = "\N{SYMBOL FOR RECORD SEPARATOR}"
"""Stands for what the policy said when a chat template is asked what comes after it."""


class Renderer:
    """One tokenizer, for one way of asking: bare texts, or as a user in the tokenizer's chat template."""

    def __init__(
        self, tokenizer: Any, chat: bool, stop: Sequence[str], options: Mapping[str, Any] | None = None
    ) -> None:
        """stop: texts that end a completion.    options: what the chat template is told besides. Raises ValueError for one that is not a single token, or without a template."""
        if chat and not tokenizer.chat_template:
            raise ValueError(f"prompts.chat: the tokenizer of {tokenizer.name_or_path} has no chat template")
        self._tokenizer, self._chat, self._options = tokenizer, chat, dict(options or {})
        # Every sample of a group begins with the same text, and prompts come again.
        self._opening = lru_cache(OPENINGS_KEPT)(partial(prompt_ids, tokenizer, chat=chat, options=self._options))
        self.stop_ids = stop_token_ids(tokenizer, stop)

    @classmethod
    def load(cls, policy: str, chat: bool, stop: Sequence[str], options: Mapping[str, Any] | None = None) -> "Renderer":
        """With the tokenizer of a policy: a Hugging Face directory or model name."""
        return cls(load_tokenizer(policy), chat, stop, options)

    def opening_ids(self, text: str, before: Before = ()) -> tuple[int, ...]:
        """What the policy is given before it speaks for the first time. before: of the conversation, a chat's only."""
        return self._opening(text, before=before)

    def answer_ids(self, text: str, last: int) -> tuple[int, ...]:
        """What follows what the policy said when its environment answers `text`, up to where it speaks again.

        last: the last token that was sampled, which a chat template may want there and is then not repeated. Raises
        ValueError for a template that does not keep what was said.
        """
        if not self._chat:
            return tuple(self._tokenizer.encode(text, add_special_tokens=False))
        conversation = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": _SAID},
            {"role": "user", "content": text},
        ]
        whole: str = self._tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=False, **self._options
        )
        _, said, after = whole.partition(_SAID)
        if not said:
            raise ValueError("the chat template drops what the policy said before; it cannot take several turns")
        ids = self._tokenizer.encode(after, add_special_tokens=False)
        return tuple(ids[1:] if ids[:1] == [last] else ids)

    def text(self, token_ids: Sequence[int]) -> str:
        """What sampled tokens say, without special tokens and without the stop text that ended them."""
        ids = list(token_ids)
        if ids and ids[-1] in self.stop_ids:
            ids.pop()
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


def load_tokenizer(policy: str) -> Any:
    """The tokenizer of a Hugging Face directory or model name, which neither cuts nor pads, whatever its file says.

    Raises OSError if there is none, ValueError for one that needs code of its own.
    """
    # Imported here: it takes seconds, and starting is when a worker has them. First without a name: transformers puts another module
    # in its own place at the end of its import, and whoever waited for another thread's would look for the name in the first one.
    importlib.import_module("transformers")
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(policy, trust_remote_code=False)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def prompt_ids(
    tokenizer: Any, text: str, chat: bool, before: Before = (), options: Mapping[str, Any] | None = None
) -> tuple[int, ...]:
    """What the engine is given of a prompt. chat: wrap it as a user message, after those before it, in the tokenizer's chat
    template, which is told the options. Raises ValueError for a conversation without a chat."""
    (ids,) = all_prompt_ids(tokenizer, [(text, before)], chat, options)
    return ids


def all_prompt_ids(
    tokenizer: Any, openings: Sequence[tuple[str, Before]], chat: bool, options: Mapping[str, Any] | None = None
) -> list[tuple[int, ...]]:
    """The same for many, (text, before) each: several times as fast."""
    if not chat:
        if any(before for _, before in openings):
            raise ValueError("a conversation needs the tokenizer's chat template; set prompts.chat to true")
        return [tuple(ids) for ids in tokenizer([text for text, _ in openings])["input_ids"]]
    conversations = [
        [{"role": role, "content": content} for role, content in (*before, ("user", text))] for text, before in openings
    ]
    rendered = tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, return_dict=True, **(options or {})
    )
    return [tuple(ids) for ids in rendered["input_ids"]]


def stop_token_ids(tokenizer: Any, stop: Sequence[str]) -> tuple[int, ...]:
    """The token of each stop text. Raises ValueError for a text that is not exactly one token."""
    ids = []
    for text in stop:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        if len(encoded) != 1:
            raise ValueError(
                f"sampling.stop: {text!r} is {len(encoded)} tokens of this tokenizer, and must be exactly one"
            )
        ids.append(int(encoded[0]))
    return tuple(ids)
