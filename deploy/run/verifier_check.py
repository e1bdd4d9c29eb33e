"""A verifier of the user's own that cannot be loaded, or says what is no number, is found before anything starts."""

import asyncio
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.import_path import own_packages_first
from actors.prompts.pool import PromptPool
from actors.prompts.prompt import Prompt
from actors.rewards.pool import RewardPool, UnloadableVerifierError
from actors.rewards.protocol import NOT_A_NUMBER, Attempt
from actors.verifiers import BUILT_IN, WITH_OPTIONS, named
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError

log = logging.getLogger(__name__)

OUT_OF_REACH = ("ServiceError", "BudgetError", "SandboxError")
"""In an error of what judges elsewhere: it would fail for every completion."""


def refuse_unusable_verifiers(config: RunConfig, pool: PromptPool) -> None:
    """Load each verifier of the user's own in a process as the run will have it, and ask it once: for its first prompt, about the
    gold answer. Raises ConfigError where it does not load, or returns what is no number; warns of any other error."""
    firsts: dict[str, Prompt] = {}
    for prompt in (*pool.train, *pool.held_out):
        if prompt.verifier not in BUILT_IN:
            firsts.setdefault(prompt.verifier, prompt)
    if firsts:
        with _called_from_here():
            asyncio.run(_ask_each(config, firsts.values()))


@contextmanager
def _called_from_here() -> Iterator[None]:
    """Modules are found in the working directory first, as in the processes that Ray starts; a script's own path lacks it."""
    before = sys.path[:]
    sys.path[:] = own_packages_first([str(Path.cwd()), *before])
    try:
        yield
    finally:
        sys.path[:] = before


async def _ask_each(config: RunConfig, prompts: Iterable[Prompt]) -> None:
    rewards = RewardPool(config.rewards)
    try:
        for prompt in prompts:
            await _ask(rewards, prompt)
    finally:
        await rewards.close()


async def _ask(rewards: RewardPool, prompt: Prompt) -> None:
    where = f"prompts.sources: source `{prompt.source}`"
    try:
        await rewards.start([prompt.verifier])
    except UnloadableVerifierError as error:
        reason = " ".join(str(error.__cause__ or error).split()).removeprefix("UnknownVerifierError: ")
        reason = reason.removeprefix(f"verifier `{prompt.verifier}` cannot be loaded: ")
        ours = named(prompt.verifier)[0] in WITH_OPTIONS
        places = "modules are looked for in the directory that bvblend is called from, and where Python finds them"
        raise ConfigError(
            f"{where}: verifier `{prompt.verifier}` does not load: {reason}" + ("" if ours else f"; {places}")
        ) from None
    gold = prompt.answer or ""
    (verdict,) = await rewards.judge(prompt, [Attempt(gold)])
    if verdict.error is None:
        return
    said = f"{where}: asked about the gold answer {gold[:80]!r} of the first prompt, {' '.join(verdict.error.split())}"
    if any(kind in verdict.error for kind in OUT_OF_REACH):
        raise ConfigError(f"{said}; no completion could be judged")
    # None may be what it says of an answer that it cannot read; any other kind of thing is never a reward.
    if NOT_A_NUMBER in verdict.error and "returned NoneType" not in verdict.error:
        raise ConfigError(f"{said}; let `{prompt.verifier}` return a number, True or False, or a mapping of numbers")
    log.warning("%s; a completion with an error has no reward", said)
