"""One group: the samples of one prompt are drawn side by side, and described for the moments service."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.engines.protocol import Engine, GenerationRequest
from actors.prompts.prompt import Prompt, Ticket
from actors.prompts.renderer import Renderer
from actors.rewards.protocol import Verdict
from actors.rollout.episode import Episode
from actors.rollout.sample import Sample
from actors.rollout.spec import RolloutSpec
from moments_service.messages.groups import GroupStatus, ScoredGroup, Transcript
from moments_service.seeding import derive_seed


class PromptTooLongError(ValueError):
    """A prompt leaves no room for its completion."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How the samples of one prompt are drawn."""

    name: str
    """Of the engine's requests; no other draw that runs has it."""
    n: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int


class GroupSampler:
    """Consumes: prompts, as many at once as callers send. Waits for: the engine, and each sample's environment."""

    def __init__(self, spec: RolloutSpec, renderer: Renderer, engine: Engine) -> None:
        self._spec, self.renderer, self._engine = spec, renderer, engine

    async def episodes(self, prompt: Prompt, draw: Draw) -> list[Episode]:
        """`draw.n` episodes of one prompt, all of them over and closed.

        Samples that begin with the same tokens, as they do where the environment chooses nothing, come from one request
        of the engine; what follows an environment's answer is asked for sample by sample. Raises PromptTooLongError
        before anything is sampled, and what the engine raises; whatever an environment does is an error of its sample.
        """
        kind = self._spec.environment
        episodes = [Episode(index, kind.create(), self.renderer, kind.timeout_s) for index in range(draw.n)]
        try:
            await asyncio.gather(
                *(episode.open(prompt, derive_seed(draw.seed, "environment", episode.index)) for episode in episodes)
            )
            self._refuse_long(prompt, episodes, draw.max_tokens)
            alike: dict[tuple[int, ...], list[Episode]] = defaultdict(list)
            for episode in episodes:
                if episode.verdict is None:
                    alike[tuple(episode.tokens)].append(episode)
            await asyncio.gather(*(self._begin(some, draw, whole=len(alike) == 1) for some in alike.values()))
        finally:
            await asyncio.gather(*(episode.close() for episode in episodes))
        return episodes

    async def _begin(self, episodes: Sequence[Episode], draw: Draw, whole: bool) -> None:
        name = draw.name if whole else f"{draw.name}:{episodes[0].index}"
        completions = await self._engine.generate(self._request(name, episodes[0], len(episodes), draw))
        for episode, completion in zip(episodes, completions, strict=True):
            episode.say(completion)
        await asyncio.gather(*(self._continue(episode, draw) for episode in episodes))

    async def _continue(self, episode: Episode, draw: Draw) -> None:
        while await episode.answer(self._spec.rollout.max_model_len):
            name = f"{draw.name}:{episode.index}:{len(episode.replies)}"
            (completion,) = await self._engine.generate(self._request(name, episode, 1, draw))
            episode.say(completion)

    def _request(self, name: str, episode: Episode, n: int, draw: Draw) -> GenerationRequest:
        return GenerationRequest(
            request_id=name,
            token_ids=tuple(episode.tokens),
            n=n,
            max_tokens=min(draw.max_tokens, self._spec.rollout.max_model_len - len(episode.tokens)),
            temperature=draw.temperature,
            top_p=draw.top_p,
            top_k=draw.top_k,
            stop_token_ids=self.renderer.stop_ids,
            seed=draw.seed,
        )

    def _refuse_long(self, prompt: Prompt, episodes: Sequence[Episode], max_tokens: int) -> None:
        rollout = self._spec.rollout
        room = rollout.max_model_len - max_tokens
        longest = max(len(episode.tokens) for episode in episodes)
        if longest > room:
            raise PromptTooLongError(
                f"prompt {prompt.prompt_id} of source `{prompt.source}` has {longest} tokens; rollout.max_model_len "
                f"{rollout.max_model_len} less the {max_tokens} tokens of a completion leaves {room}"
            )


def header(ticket: Ticket, samples: Sequence[Sample], verdicts: Sequence[Verdict], version: int) -> ScoredGroup:
    """What the moments service learns of a group. version: of the policy now, for a group without a single token."""
    sampled = [sample.versions[sample.loss_mask] for sample in samples if sample.trained_tokens]
    versions = np.concatenate(sampled) if sampled else np.array([version])
    rewarded = any(verdict.reward is not None for verdict in verdicts)
    parts = tuple(verdict.parts for verdict in verdicts)
    prompt_tokens = shared_prompt(samples)
    return ScoredGroup(
        group_id=ticket.group_id,
        prompt_id=ticket.prompt.prompt_id,
        source=ticket.prompt.source,
        sequence=ticket.sequence,
        rewards=tuple(verdict.reward for verdict in verdicts),
        errors=tuple(verdict.error for verdict in verdicts),
        lengths=tuple(sample.trained_tokens for sample in samples),
        truncated=tuple(sample.truncated for sample in samples),
        turns=tuple(sample.turns for sample in samples),
        prompt_tokens=prompt_tokens,
        read=tuple(len(sample.token_ids) - sample.trained_tokens - prompt_tokens for sample in samples),
        policy_versions=(int(versions.min()), int(versions.max())),
        difficulty=ticket.prompt.difficulty,
        parts=parts if any(parts) else None,
        status=GroupStatus.SCORED if rewarded else GroupStatus.ERROR,
    )


def shared_prompt(samples: Sequence[Sample]) -> int:
    """How many tokens that nobody sampled all samples of a group begin with."""
    opening = min((sample.opening for sample in samples), key=len)
    for sample in samples:
        differs = np.flatnonzero(sample.token_ids[: len(opening)] != opening)
        opening = opening[: differs[0]] if len(differs) else opening
    return len(opening)


def transcript(ticket: Ticket, episodes: Sequence[Episode], share: float, chars: int) -> Transcript | None:
    """The group's texts, cut to `chars` each, if it is one of the `share` of groups whose texts are kept."""
    # By the group's id alone: the same groups are kept whoever samples them.
    if derive_seed(0, "transcript", ticket.group_id) >= share * 2**63:
        return None
    return Transcript(
        prompt=ticket.prompt.text[:chars],
        completions=tuple("\n".join(episode.spoken)[:chars] for episode in episodes),
    )
