"""The tokenizer of a tiny policy: bytes, plus every word that a source's prompts keep repeating."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from actors.prompts.prompt import Prompt

PAD, EOS = "<pad>", "<eos>"
WORD = r" [A-Za-z]+"
"""Only words after a space may be one token, so answers are spelled digit by digit and letter by letter."""
COMMON = 0.03
"""Share of a source's prompts that a word stands in to become a token."""


def build_tokenizer(prompts: Iterable[Prompt]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose whole-word tokens are the wording of these prompts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # ByteLevel writes the space as this letter.
    words = [f"Ġ{word[1:]}" for word in _common_words(prompts)]
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, *alphabet, *words])}
    # ignore_merges: a word of the vocabulary is one token, any other falls apart into bytes; so no merges are needed.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf"{WORD}|[\s\S]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _common_words(prompts: Iterable[Prompt]) -> list[str]:
    texts = defaultdict(list)
    for prompt in prompts:
        texts[prompt.source].append(prompt.text)
    common: set[str] = set()
    for family in texts.values():
        counts = Counter(word for text in family for word in set(re.findall(WORD, text)))
        common |= {word for word, count in counts.items() if count >= COMMON * len(family) and len(word) > 2}
    return sorted(common)
