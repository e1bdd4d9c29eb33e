"""Where prompts come from: reasoning-gym tasks, files and datasets, as one pool of distinct prompts.

Nothing here depends on the run's seed: the same recipe gives the same training and held-out prompts in every run.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from actors.prompts.files import load_file
from actors.prompts.options import PromptConfig, ReasoningGymSource, Source, fresh_sources
from actors.prompts.pool import PLACES, PromptPool, SourceError, distinct
from actors.prompts.tasks import load_task

log = logging.getLogger(__name__)


def load_prompts(
    config: PromptConfig, base: Path, need_difficulty: bool = False, fresh: Mapping[str, int] | None = None
) -> PromptPool:
    """Read every source of a recipe.

    base: the recipe's folder, from which paths of files count.    need_difficulty: refuse one that is no text or number.
    fresh: how many prompts to make of each fresh source, by name; a task's own size if left out.
    Prompts keep the order of the sources; a prompt that came before, by id, is dropped.
    """
    names = [source.name for source in config.sources]
    for source in config.sources:
        if names.count(source.name) > 1:
            raise SourceError(source, "this name is used twice; give every source a name of its own")
    sources = [
        source.model_copy(update={"limit": (fresh or {}).get(source.name)})
        if source.name in fresh_sources(config)
        else source
        for source in config.sources
    ]
    pools = [_load(source, base, need_difficulty) for source in sources]
    named = [(f"source `{source.name}`", pool) for source, pool in zip(config.sources, pools, strict=True)]
    held_out = distinct((where, prompt) for where, pool in named for prompt in pool.held_out)
    # Two sources may read the same file under two names: then ids differ, but the text must still not be trained on.
    kept_back = {prompt.asked for prompt in held_out}
    train = distinct((where, prompt) for where, pool in named for prompt in pool.train if prompt.asked not in kept_back)
    for where, pool in named:
        overlap = sum(prompt.asked in kept_back for prompt in pool.train)
        if overlap:
            log.warning("%s: %d prompts are held out by another source and not trained on", where, overlap)
    if not train:
        raise ValueError("prompts.sources: every training prompt is held out by another source; nothing to train on")
    return PromptPool(train=train, held_out=held_out)


def _load(source: Source, base: Path, need_difficulty: bool) -> PromptPool:
    if "{question}" not in source.template and (
        isinstance(source, ReasoningGymSource) or not PLACES.search(source.template)
    ):
        raise SourceError(source, f"template {source.template!r} has no place for the question; put {{question}} in it")
    pool = load_task(source) if isinstance(source, ReasoningGymSource) else load_file(source, base, need_difficulty)
    if not pool.train:
        raise SourceError(
            source,
            f"no training prompts are left ({len(pool.held_out)} are held out); "
            "lower `held_out` or loosen what leaves prompts out",
        )
    made = isinstance(source, ReasoningGymSource) and source.fresh
    if source.limit is not None and not made and len(pool.train) < source.limit:
        log.warning("source `%s`: only %d training prompts of limit %d", source.name, len(pool.train), source.limit)
    if len(pool.held_out) < source.held_out:
        log.warning("source `%s`: only %d of %d held-out prompts", source.name, len(pool.held_out), source.held_out)
    return pool
