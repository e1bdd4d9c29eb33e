"""Some groups of every so manieth step are kept token by token, for people who read the samples."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from actors.prompts.renderer import load_tokenizer
from deploy.config.models import RunConfig
from deploy.rundir import token_file
from deploy.rundir.layout import RunDirectory
from learner.batching.split import trained_tokens
from learner.group import LearnerGroup
from learner.token_values import TokenValues
from moments_service.messages.batch import Batch
from moments_service.seeding import derive_seed

Decode = Callable[[Sequence[int]], list[str]]
"""The text that each token adds to those before it; of characters that several tokens make up, the last has all."""


class TokenKeeper:
    """Chooses the groups, and writes what the learner says of their tokens. A step that is done again is written again, alike."""

    def __init__(self, config: RunConfig, directory: RunDirectory, learner: LearnerGroup, incarnation: int) -> None:
        self._config = config
        self._directory = directory
        self._learner = learner
        self._incarnation = incarnation
        self._decode: Decode | None = None

    def chosen(self, batch: Batch) -> frozenset[str]:
        """Ids of a random few among the groups that are trained on; by the run's seed and the step alone."""
        if not self._due(batch.step):
            return frozenset()
        useful = np.flatnonzero(trained_tokens(batch))
        random = np.random.default_rng(derive_seed(self._config.seed, "tokens", batch.step))
        rows = random.permutation(useful)[: self._config.transcripts.tokens_groups]
        return frozenset(batch.group_ids[row] for row in rows.tolist())

    async def keep(self, step: int) -> None:
        """After the step: write the values down, where there are any."""
        if self._due(step) and (values := await self._learner.take_token_values()):
            await asyncio.to_thread(self._write, step, values)

    def _due(self, step: int) -> bool:
        every = self._config.transcripts.tokens_every
        return every > 0 and step % every == 0

    def _write(self, step: int, values: Sequence[TokenValues]) -> None:
        if self._decode is None:
            self._decode = decoder(self._config.policy)
        texts = [self._decode(one.token_ids.tolist()) for one in values]
        token_file.write(self._directory.tokens, step, self._incarnation, values, texts)


def decoder(policy: str) -> Decode:
    """How the tokens of a policy's tokenizer read one by one, special ones too."""
    file = Path(policy) / "tokenizer.json"
    if file.exists():  # the library alone, without the seconds that transformers takes to be imported
        return partial(_streamed, Tokenizer.from_file(str(file)))
    tokenizer = load_tokenizer(policy)
    return partial(_streamed, tokenizer.backend_tokenizer) if tokenizer.is_fast else partial(_alone, tokenizer)


def _streamed(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    stream = DecodeStream(skip_special_tokens=False)
    pieces = [stream.step(tokenizer, token) or "" for token in ids]
    # Of a character that never became whole the stream says nothing.
    whole = tokenizer.decode(list(ids), skip_special_tokens=False)
    return [*pieces[:-1], pieces[-1] + whole[len("".join(pieces)) :]] if pieces else []


def _alone(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return [str(tokenizer.decode([token])) for token in ids]
