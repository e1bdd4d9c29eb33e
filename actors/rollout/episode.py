"""One sample: the policy and its environment speak in turn until one of them ends it."""

import logging
import math
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from actors.deadline import LateError, within
from actors.engines.protocol import Completion
from actors.environments.protocol import Environment
from actors.prompts.prompt import Prompt
from actors.prompts.renderer import Renderer
from actors.rewards.protocol import Attempt, Verdict, reason
from actors.rollout.sample import Sample

logger = logging.getLogger(__name__)

ABORTED = "aborted"
"""Error of a sample whose generation was ended from outside; half an answer is not judged."""

T = TypeVar("T")


class EnvironmentFailedError(RuntimeError):
    """What an environment raised, or that it took too long; an error of its sample."""


@dataclass(slots=True, eq=False)
class Episode:
    """A sample while it grows: what was said and read so far, token by token.

    Opened by `open`; then `say` what the policy sampled and `answer` from its environment until that returns False.
    """

    index: int
    environment: Environment
    renderer: Renderer
    timeout_s: float
    """Deadline for each answer of the environment."""
    tokens: list[int] = field(default_factory=list)
    verdict: Verdict | None = None
    """Given by the environment, or because there is nothing to judge; None leaves it to the verifier."""
    truncated: bool = False
    replies: list[str] = field(default_factory=list)
    """What the policy said, turn by turn."""
    spoken: list[str] = field(default_factory=list)
    """The same with what the environment answered in between."""
    _masks: list[np.ndarray] = field(default_factory=list)
    _logprobs: list[np.ndarray] = field(default_factory=list)
    _versions: list[np.ndarray] = field(default_factory=list)

    async def open(self, prompt: Prompt, seed: int) -> None:
        """Let the environment say the first word. What goes wrong is the sample's verdict; its prompt then is what it read."""
        try:
            text = (await self._ask(self.environment.reset(prompt, seed))).text
        except EnvironmentFailedError as error:
            text, self.verdict = prompt.text, Verdict(None, str(error))
        self._read(self.renderer.opening_ids(text, prompt.before))

    def say(self, completion: Completion) -> None:
        """Add what the policy sampled."""
        text = self.renderer.text(completion.token_ids.tolist())
        self.replies.append(text)
        self.spoken.append(text)
        self._append(completion.token_ids, True, completion.logprobs, completion.versions)
        self.truncated = completion.finish_reason == "length"
        if completion.finish_reason == "abort":
            self.verdict = Verdict(None, ABORTED)

    async def answer(self, max_model_len: int) -> bool:
        """Let the environment answer; False where the episode is over. max_model_len: tokens that a sample may have."""
        if self.truncated or self.verdict is not None:
            return False
        try:
            turn = await self._ask(self.environment.step(self.replies[-1], self.timeout_s))
        except EnvironmentFailedError as error:
            self.verdict = Verdict(None, str(error))
            return False
        if turn.done:
            if turn.reward is not None and not math.isfinite(turn.reward):
                self.verdict = Verdict(None, f"environment returned {turn.reward}")
            elif turn.reward is not None:
                self.verdict = Verdict(float(turn.reward))
            return False
        ids = self.renderer.answer_ids(turn.text, self.tokens[-1])
        if len(self.tokens) + len(ids) >= max_model_len:
            self.truncated = True
            return False
        self.spoken.append(turn.text)
        self._read(ids)
        return True

    async def close(self) -> None:
        """Close the environment; what it has to say against that is no error of a sample that is over."""
        try:
            await self._ask(self.environment.close())
        except EnvironmentFailedError:
            logger.warning("an environment did not close", exc_info=True)

    def sample(self, group_id: str, temperature: float) -> Sample:
        """What the learner gets of it."""
        return Sample(
            group_id=group_id,
            index=self.index,
            token_ids=np.array(self.tokens, dtype=np.int32),
            loss_mask=np.concatenate(self._masks),
            logprobs=np.concatenate(self._logprobs),
            versions=np.concatenate(self._versions),
            temperature=temperature,
            turns=len(self.replies),
            truncated=self.truncated,
        )

    def attempt(self) -> Attempt:
        """What a verifier gets of it."""
        sampled = sum(int(mask.sum()) for mask in self._masks)
        return Attempt(self.replies[-1], self.index, sampled, self.truncated, tuple(self.replies))

    def _read(self, ids: tuple[int, ...]) -> None:
        """Tokens that the policy did not sample."""
        count = len(ids)
        self._append(np.array(ids, np.int32), False, np.zeros(count, np.float32), np.full(count, -1, np.int32))

    def _append(self, ids: np.ndarray, sampled: bool, logprobs: np.ndarray, versions: np.ndarray) -> None:
        self.tokens += ids.tolist()
        self._masks.append(np.full(len(ids), sampled))
        self._logprobs.append(logprobs)
        self._versions.append(versions)

    async def _ask(self, waiting: Awaitable[T]) -> T:
        try:
            return await within(self.timeout_s, waiting, lambda: f"environment timed out after {self.timeout_s:g} s")
        except LateError as error:
            raise EnvironmentFailedError(str(error)) from None
        except Exception as error:  # whatever an environment raises is an error of its sample, and of nothing else
            raise EnvironmentFailedError(f"environment raised {reason(error)}") from error
