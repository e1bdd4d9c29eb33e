"""A prompt becomes a group of samples with rewards. Plain async Python; `actor.py` is the Ray shell."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.engines.create import create_engine
from actors.engines.protocol import Engine
from actors.prompts.prompt import Prompt, Ticket
from actors.prompts.renderer import Renderer
from actors.rewards.protocol import Attempt, Verdict
from actors.rewards.range import within
from actors.rewards.thread import RewardThread
from actors.rollout.episode import Episode
from actors.rollout.evaluated import EvaluatedGroup, EvaluationDraw, given_answer
from actors.rollout.group import Draw, GroupSampler, header, transcript
from actors.rollout.sample import Sample
from actors.rollout.spec import RolloutSpec
from actors.shaping.witness import Witness
from actors.weights.offer import WeightOffer
from moments_service.messages.groups import ScoredGroup, Transcript
from moments_service.seeding import derive_seed


@dataclass(frozen=True, slots=True)
class SampledGroup:
    """One group as it leaves the worker: the header and the transcript to the moments service, the samples to the learner."""

    header: ScoredGroup
    samples: tuple[Sample, ...]
    transcript: Transcript | None
    timings: dict[str, float]
    """`generate_s`, `score_s` (time that verifiers worked), `wait_s` (how long the group then waited for its verdicts), the number of
    `verdicts`, and `tokens` that were sampled."""
    observed: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """By kind of shaping rule, what it saw of each completion; for the driver, and for nobody who remembers."""


class RolloutWorker:
    """Samples and scores groups with one engine and one reward pool.

    Consumes: tickets, as many at once as callers send. Waits for: the engine and environments, then the pool. Ended by: `close`.
    """

    def __init__(self, spec: RolloutSpec, index: int) -> None:
        """index: this worker's place among the rollout actors."""
        self._spec, self._index = spec, index
        self._pool = RewardThread(spec.rewards)
        self._witness = Witness(spec.shaping, spec.seed)
        self._engine: Engine | None = None
        self._sampler: GroupSampler | None = None

    async def start(self) -> None:
        """Load tokenizer, engine and verifiers. Raises if any of them cannot serve, with nothing left running."""
        try:
            await asyncio.gather(self._pool.start(self._spec.verifiers), self._start_engine())
        except BaseException:
            await self.close()
            raise

    @property
    def policy_version(self) -> int:
        """Version of the weights that the next token is sampled with."""
        return self._started()[0].policy_version

    async def rollout(self, ticket: Ticket) -> SampledGroup:
        """Sample and score one group, of as many samples as its ticket says.

        Raises PromptTooLongError before anything is sampled, and what the engine raises; whatever a verifier or an
        environment does is an error of its sample.
        """
        spec = self._spec
        engine, sampler = self._started()
        ticket = self._witness.told(ticket)
        seed = derive_seed(spec.seed, "sample", ticket.group_id)
        how = spec.sampling
        draw = Draw(ticket.group_id, ticket.group_size, how.temperature, how.top_p, how.top_k, how.max_tokens, seed)
        started = time.perf_counter()
        episodes = await sampler.episodes(ticket.prompt, draw)
        generate_s = time.perf_counter() - started
        verdicts = await self._judge(ticket.prompt, episodes)
        samples = tuple(episode.sample(ticket.group_id, draw.temperature) for episode in episodes)
        witnessed = await self._witness.looked_at(
            ticket,
            samples,
            ["\n".join(episode.replies) for episode in episodes],
            [verdict.reward for verdict in verdicts],
            lambda attempts: self._verdicts(ticket.prompt, attempts),
            sampler.renderer.text,
        )
        return SampledGroup(
            header=header(ticket, samples, verdicts, engine.policy_version),
            samples=witnessed.samples,
            transcript=transcript(ticket, episodes, spec.text_share, spec.text_chars),
            timings={
                "generate_s": generate_s,
                "score_s": sum(verdict.seconds for verdict in verdicts) + witnessed.judge_s,
                "wait_s": time.perf_counter() - started - generate_s,
                "verdicts": float(len(verdicts)),
                "tokens": float(sum(sample.trained_tokens for sample in samples)),
            },
            observed=witnessed.observed,
        )

    async def evaluate(self, prompts: Sequence[Prompt], how: EvaluationDraw) -> list[EvaluatedGroup]:
        """Fresh samples of each prompt, judged.

        The prompts must be distinct. Every call samples the same noise, so that two policies are compared in pairs.
        """
        return await asyncio.gather(*(self._evaluate(prompt, how) for prompt in prompts))

    async def take(self, offer: WeightOffer) -> None:
        """Take new weights whole or not at all, see `Engine.take_weights`. offer: fetched."""
        await self._started()[0].take_weights(offer, running="keep")

    async def close(self) -> None:
        """End the engine and the verifiers. May be called twice."""
        await self._pool.close()
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    async def _start_engine(self) -> None:
        spec = self._spec
        renderer = await asyncio.to_thread(Renderer.load, spec.policy, spec.chat, spec.sampling.stop, spec.chat_options)
        engine = await asyncio.to_thread(create_engine, spec.rollout, spec.policy, spec.seed, self._index, spec.adapter)
        # Known before it starts, so that a start that fails half-way is closed.
        self._engine = engine
        await engine.start()
        self._sampler = GroupSampler(spec, renderer, engine)

    def _started(self) -> tuple[Engine, GroupSampler]:
        if self._engine is None or self._sampler is None:
            raise RuntimeError("the rollout worker was not started, or is closed")
        return self._engine, self._sampler

    async def _judge(self, prompt: Prompt, episodes: Sequence[Episode]) -> list[Verdict]:
        open_ones = [episode for episode in episodes if episode.verdict is None]
        judged = iter(await self._pool.judge(prompt, [episode.attempt() for episode in open_ones]))
        verdicts = [next(judged) if episode.verdict is None else episode.verdict for episode in episodes]
        return [within(verdict, self._spec.rewards.range) for verdict in verdicts]

    async def _verdicts(self, prompt: Prompt, attempts: Sequence[Attempt]) -> list[Verdict]:
        judged = await self._pool.judge(prompt, attempts)
        return [within(verdict, self._spec.rewards.range) for verdict in judged]

    async def _evaluate(self, prompt: Prompt, how: EvaluationDraw) -> EvaluatedGroup:
        # All greedy completions of a prompt are the same one.
        distinct = how.samples if how.temperature > 0 else 1
        seed = derive_seed(self._spec.seed, "evaluate", prompt.prompt_id)
        name = f"evaluate:{prompt.prompt_id}"
        draw = Draw(name, distinct, how.temperature, how.top_p, how.top_k, how.max_tokens, seed)
        episodes = await self._started()[1].episodes(prompt, draw)
        verdicts = await self._judge(prompt, episodes)
        samples = [episode.sample(name, how.temperature) for episode in episodes]
        times = how.samples // distinct
        return EvaluatedGroup(
            rewards=tuple(verdict.reward for verdict in verdicts) * times,
            errors=tuple(verdict.error for verdict in verdicts) * times,
            lengths=tuple(sample.trained_tokens for sample in samples) * times,
            truncated=tuple(sample.truncated for sample in samples) * times,
            answers=tuple(given_answer(episode.replies[-1]) if episode.replies else None for episode in episodes)
            * times,
        )
