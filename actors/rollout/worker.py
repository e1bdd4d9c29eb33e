"""One rollout: a prompt becomes a group of completions with rewards. Plain async Python; `actor.py` is the Ray shell."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.config import RolloutConfig, SamplingConfig
from actors.engines import create_engine
from actors.engines.protocol import Completion, Engine, GenerationRequest
from actors.prompts.feed import Prompt, Ticket
from actors.rewards.pool import Score, Scorer
from actors.rollout.payload import GroupPayload
from actors.weights.update import WeightUpdate
from moments_service.messages.groups import GroupStatus, ScoredGroup, Transcript
from moments_service.seeding import derive_seed

ABORTED = "aborted"
"""Error of a completion whose generation was ended from outside; half an answer is not judged."""


class PromptTooLongError(ValueError):
    """A prompt leaves no room for its completion."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One group, ready to be sent: the header to the moments service, the payload to the learner."""

    header: ScoredGroup
    payload: GroupPayload
    transcript: Transcript | None
    timings: dict[str, float]
    """`generate_s`, `score_s` (time that verifiers worked) and `tokens` of the completions."""


class RolloutWorker:
    """Samples and scores groups with one engine and one verifier process.

    Consumes: tickets, as many at once as callers send. Waits for: the engine, then the scorer. Ended by: `close`.
    """

    def __init__(
        self,
        config: RolloutConfig,
        sampling: SamplingConfig,
        policy: str,
        chat: bool,
        seed: int,
        index: int,
        text_share: float,
        text_chars: int,
        verifiers: Sequence[str] = (),
    ) -> None:
        """seed: the run's.    index: this worker's place among the rollout actors.

        text_share, text_chars: of how many groups the texts are kept, and how much of each text.
        verifiers: names to load at the start; others are loaded when first needed.
        """
        self._config, self._sampling = config, sampling
        self._policy, self._chat, self._seed, self._index = policy, chat, seed, index
        self._text_share, self._text_chars = text_share, text_chars
        self._verifiers = tuple(verifiers)
        self._scorer = Scorer(config.verifier_timeout_s)
        self._tokenizer: Any = None
        self._stop_ids: tuple[int, ...] = ()
        self._engine: Engine | None = None

    async def start(self) -> None:
        """Load tokenizer, engine and verifiers. Raises if any of them cannot serve, with nothing left running."""
        try:
            await asyncio.gather(self._scorer.start(self._verifiers), self._start_engine())
        except BaseException:
            await self.close()
            raise

    @property
    def policy_version(self) -> int:
        """Version of the weights that the next token is sampled with."""
        return self._started_engine().policy_version

    async def rollout(self, ticket: Ticket, embedding: np.ndarray | None) -> Rollout:
        """Sample and score one group, of as many completions as its ticket says.

        embedding: [d] of the prompt, passed on in the header. Raises PromptTooLongError before anything is sampled,
        and what the engine raises; whatever a verifier does is an error of its completion.
        """
        prompt = ticket.prompt
        prompt_ids = self._prompt_ids(prompt)
        seed = derive_seed(self._seed, "sample", ticket.group_id)
        request = self._request(ticket.group_id, prompt_ids, ticket.group_size, self._sampling.temperature, seed)
        started = time.perf_counter()
        completions = await self._started_engine().generate(request)
        generate_s = time.perf_counter() - started
        texts = [self._text(completion) for completion in completions]
        scores = await self._score(prompt, completions, texts)
        return Rollout(
            header=self._header(ticket, embedding, completions, scores),
            payload=GroupPayload(
                group_id=ticket.group_id,
                prompt_ids=np.asarray(prompt_ids, dtype=np.int32),
                completions=tuple(completion.token_ids for completion in completions),
                logprobs=tuple(completion.logprobs for completion in completions),
                versions=tuple(completion.versions for completion in completions),
                temperature=self._sampling.temperature,
            ),
            transcript=self._transcript(ticket, texts, scores),
            timings={
                "generate_s": generate_s,
                "score_s": sum(score.seconds for score in scores),
                "tokens": float(sum(len(completion.token_ids) for completion in completions)),
            },
        )

    async def evaluate(self, prompts: Sequence[Prompt], temperature: float, n: int) -> list[list[float | None]]:
        """Rewards of `n` fresh completions of each prompt; None where there is no reward. Temperature 0 is greedy.

        The prompts must be distinct. Every call samples the same noise, so that two policies are compared in pairs.
        """
        encoded = [self._prompt_ids(prompt) for prompt in prompts]
        return await asyncio.gather(
            *(self._evaluate(prompt, ids, temperature, n) for prompt, ids in zip(prompts, encoded, strict=True))
        )

    async def update_weights(self, update: WeightUpdate) -> None:
        """Take new weights whole or not at all, see `Engine.update_weights`."""
        await self._started_engine().update_weights(update)

    async def close(self) -> None:
        """End the engine and the verifier process. May be called twice."""
        await self._scorer.close()
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    async def _start_engine(self) -> None:
        self._tokenizer = await asyncio.to_thread(_load_tokenizer, self._policy)
        self._stop_ids = stop_token_ids(self._tokenizer, self._sampling.stop)
        if self._chat and not self._tokenizer.chat_template:
            raise ValueError(f"prompts.chat: the tokenizer of {self._policy} has no chat template")
        engine = await asyncio.to_thread(create_engine, self._config, self._policy, self._seed, self._index)
        # Known before it starts, so that a start that fails half-way is closed.
        self._engine = engine
        await engine.start()

    def _started_engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the rollout worker was not started, or is closed")
        return self._engine

    def _prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        ids = prompt_ids(self._tokenizer, prompt.text, self._chat)
        room = self._config.max_model_len - self._sampling.max_tokens
        if len(ids) > room:
            raise PromptTooLongError(
                f"prompt {prompt.prompt_id} of source `{prompt.source}` has {len(ids)} tokens; rollout.max_model_len "
                f"{self._config.max_model_len} less sampling.max_tokens {self._sampling.max_tokens} leaves {room}"
            )
        return ids

    def _request(
        self, request_id: str, prompt_ids: tuple[int, ...], n: int, temperature: float, seed: int
    ) -> GenerationRequest:
        return GenerationRequest(
            request_id=request_id,
            prompt_ids=prompt_ids,
            n=n,
            max_tokens=self._sampling.max_tokens,
            temperature=temperature,
            top_p=self._sampling.top_p,
            top_k=self._sampling.top_k,
            stop_token_ids=self._stop_ids,
            seed=seed,
        )

    def _text(self, completion: Completion) -> str:
        ids = completion.token_ids.tolist()
        if ids and ids[-1] in self._stop_ids:
            ids.pop()
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    async def _score(self, prompt: Prompt, completions: Sequence[Completion], texts: Sequence[str]) -> list[Score]:
        whole = [completion.finish_reason != "abort" for completion in completions]
        judged = iter(await self._scorer.score(prompt, [text for text, ok in zip(texts, whole, strict=True) if ok]))
        return [next(judged) if ok else Score(None, ABORTED) for ok in whole]

    def _header(
        self, ticket: Ticket, embedding: np.ndarray | None, completions: Sequence[Completion], scores: Sequence[Score]
    ) -> ScoredGroup:
        rewarded = any(score.reward is not None for score in scores)
        return ScoredGroup(
            group_id=ticket.group_id,
            prompt_id=ticket.prompt.prompt_id,
            source=ticket.prompt.source,
            sequence=ticket.sequence,
            rewards=tuple(score.reward for score in scores),
            errors=tuple(score.error for score in scores),
            lengths=tuple(len(completion.token_ids) for completion in completions),
            truncated=tuple(completion.finish_reason == "length" for completion in completions),
            policy_versions=_version_span(completions, self.policy_version),
            difficulty=ticket.prompt.difficulty,
            status=GroupStatus.SCORED if rewarded else GroupStatus.ERROR,
        )

    def _transcript(self, ticket: Ticket, texts: Iterable[str], scores: Sequence[Score]) -> Transcript | None:
        # By the group's id alone: the same groups are kept whoever samples them.
        if derive_seed(0, "transcript", ticket.group_id) >= self._text_share * 2**63:
            return None
        cut = self._text_chars
        parts = tuple(score.parts for score in scores)
        return Transcript(
            prompt=ticket.prompt.text[:cut],
            completions=tuple(text[:cut] for text in texts),
            reward_parts=parts if any(parts) else None,
        )

    async def _evaluate(
        self, prompt: Prompt, prompt_ids: tuple[int, ...], temperature: float, n: int
    ) -> list[float | None]:
        # All greedy completions of a prompt are the same one.
        distinct = n if temperature > 0 else 1
        seed = derive_seed(self._seed, "evaluate", prompt.prompt_id)
        request = self._request(f"evaluate:{prompt.prompt_id}", prompt_ids, distinct, temperature, seed)
        completions = await self._started_engine().generate(request)
        scores = await self._score(prompt, completions, [self._text(completion) for completion in completions])
        return [score.reward for score in scores] * (n // distinct)


def prompt_ids(tokenizer: Any, text: str, chat: bool) -> tuple[int, ...]:
    """What the engine is given of a prompt. chat: wrap it as a user message in the tokenizer's chat template."""
    if not chat:
        return tuple(tokenizer(text)["input_ids"])
    message = [{"role": "user", "content": text}]
    return tuple(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"])


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


def _load_tokenizer(policy: str) -> Any:
    # Imported here: it takes seconds, and starting is when a worker has them.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(policy)


def _version_span(completions: Sequence[Completion], current: int) -> tuple[int, int]:
    versions = [completion.versions for completion in completions if len(completion.versions)]
    if not versions:
        return current, current
    return min(int(each.min()) for each in versions), max(int(each.max()) for each in versions)
