"""One question, one answer, and the verifier judges it."""

from typing import ClassVar, Literal

from actors.environments.protocol import Environment, Opening, Turn
from actors.prompts.prompt import Prompt
from moments_service.config import StrictModel


class SingleTurnConfig(StrictModel):
    """The policy reads the prompt, answers once, and is judged by its verifier."""

    kind: Literal["single_turn"] = "single_turn"
    timeout_s: ClassVar[float] = 60.0

    def create(self) -> Environment:
        """A new episode."""
        return SingleTurn()


class SingleTurn:
    """Ends with the first answer."""

    async def reset(self, prompt: Prompt, seed: int) -> Opening:
        return Opening(prompt.text)

    async def step(self, reply: str, timeout_s: float) -> Turn:
        return Turn(done=True)

    async def close(self) -> None:
        """Nothing was opened."""
