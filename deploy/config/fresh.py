"""How many prompts a run needs of sources whose prompts come once each, and that they are there."""

import math
from collections import Counter
from collections.abc import Mapping

from actors.prompts.curricula import curriculum_of
from actors.prompts.options import fresh_sources
from actors.prompts.pool import PromptPool
from actors.prompts.turns import WHOLE, whole_shares
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError

SPARE = 0.1
"""Share of further prompts that are made, for groups that end without any reward and whose place another prompt takes."""


def most_dealt(config: RunConfig) -> dict[str, int]:
    """The most prompts that the run deals of each fresh source, while every group has a reward.

    Places: those of all steps, with all batches that a step may sample, and those in flight at the end. Of n places a source
    gets at most ceil(n s) with share s, and up to one more each time that shares change.
    """
    curriculum = curriculum_of(config.prompts)
    if curriculum is None:
        return {}
    places = config.batch_groups * config.generation_batches * config.steps + config.slots
    shares = [whole_shares(weights) for weights in curriculum.possible()]
    return {
        name: -(-places * max(share[name] for share in shares) // WHOLE) + len(shares) - 1
        for name in sorted(fresh_sources(config.prompts))
    }


def fresh_prompts(config: RunConfig, before: Mapping[str, int] | None = None) -> dict[str, int]:
    """How many are made of each. before: how many a run had when its checkpoint was written, that it goes on with."""
    return {
        name: max(most + math.ceil(most * SPARE), (before or {}).get(name, 0))
        for name, most in most_dealt(config).items()
    }


def refuse_too_few_fresh(config: RunConfig, pool: PromptPool) -> None:
    """Raise ConfigError where a source cannot keep on being fresh to the end of the run."""
    found = Counter(prompt.origin for prompt in pool.train)
    for name, most in most_dealt(config).items():
        if found[name] < most:
            raise ConfigError(
                f"prompts.sources: source `{name}` is fresh, and this run may deal {most} of its prompts, but only {found[name]} "
                "distinct ones can be made; widen its `params`, lower `steps` or its share, or set `fresh` to false"
            )
