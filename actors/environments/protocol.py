"""What a policy talks to: an environment asks, the policy answers, turn by turn, until the environment ends the episode."""

from dataclasses import dataclass
from typing import Protocol

from actors.prompts.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Opening:
    """The first thing that the policy reads."""

    text: str


@dataclass(frozen=True, slots=True)
class Turn:
    """What an environment does with what the policy said."""

    text: str = ""
    """What the policy reads next; nothing where the episode ends."""
    done: bool = False
    reward: float | None = None
    """With `done`: the reward of the sample, in place of the verifier's. None leaves it to the verifier."""


class EnvironmentKind(Protocol):
    """What a recipe's `environment` section is: the options of one kind, and how an episode of it is made."""

    @property
    def timeout_s(self) -> float:
        """Deadline for each answer of the environment."""
        ...

    def create(self) -> "Environment":
        """A new episode."""
        ...


class Environment(Protocol):
    """One episode of one sample. Made anew for each, used by one caller, closed whatever happens.

    Whatever it raises is an error of its sample, and never a reward.
    """

    async def reset(self, prompt: Prompt, seed: int) -> Opening:
        """Begin. The samples of a group begin alike where the environment chooses nothing by `seed`, which is the sample's own."""
        ...

    async def step(self, reply: str, timeout_s: float) -> Turn:
        """Take what the policy said. timeout_s: when the caller gives up."""
        ...

    async def close(self) -> None:
        """Give everything back."""
        ...
