"""The rollout engine: what generates completions token-in, token-out, and takes new weights while it lives."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from actors.weights.offer import WeightOffer

FinishReason = Literal["stop", "length", "abort"]
Running = Literal["keep", "wait", "abort"]
"""What becomes of running requests when weights change: they go on with the new ones, they end first, or they are ended."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Sample `n` continuations of one token prefix. Temperature 0 is greedy decoding."""

    request_id: str
    token_ids: tuple[int, ...]
    """The prefix: a prompt, and where several turns were spoken, all of them."""
    n: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0
    """Seed for engines that can honour one per request (transformers); vLLM uses its engine seed."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion.

    token_ids: [T] int32, the end-of-sequence or stop token included.
    logprobs: [T] float32, of each token under the distribution it was sampled from.
    versions: [T] int32, the policy version that sampled each token.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    finish_reason: FinishReason


class EngineDeadError(RuntimeError):
    """The engine can no longer serve; its actor must end so that Ray starts a new one."""


class Engine(Protocol):
    """Contract of every engine; `tests/contract/test_engine.py` holds each implementation to it.

    Made by `create_engine` as `TheEngine(rollout, policy, seed)`: the section `rollout` with the engine's own options in
    `rollout.engine`, a directory or hub id, and a seed of its own; `adapter=AdapterPlan` besides where weights come as adapters alone.
    """

    @property
    def policy_version(self) -> int:
        """Version of the weights that the next token is sampled with."""
        ...

    async def start(self) -> None:
        """Load the policy. Raises before returning if the engine cannot serve."""
        ...

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """Sample `request.n` completions. Cancelling it ends the request; one that `take_weights` ends returns what it had,
        with finish_reason `abort`."""
        ...

    async def take_weights(self, offer: WeightOffer, running: Running) -> None:
        """Take new weights whole or not at all; requests that arrive meanwhile wait.

        offer: whole, with its tensors in this process. After it returns, no token comes from the old weights and no cached
        prefix of them is used, but by requests that began with an adapter, which may end with it. An engine that cannot change weights under a running request lets it end where `keep` is asked for.
        Raises WeightError if a checksum or the tensors do not match; the engine must then not serve.
        """
        ...

    async def close(self) -> None:
        """End every process of the engine."""
        ...
