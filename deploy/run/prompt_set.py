"""The prompts of a run as its clusters see them."""

import logging
from collections.abc import Sequence

from actors.prompts.overlap import exact_duplicates, exact_overlap, near_duplicates, near_overlap, sentences
from actors.prompts.pool import PromptPool
from actors.prompts.prompt import Prompt
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError
from moments_service.clusters import PromptSet
from moments_service.clusters.blur import blur
from moments_service.clusters.embedding import gpu
from moments_service.clusters.encoder import PromptEncoder
from moments_service.progress import Progress, silent

log = logging.getLogger(__name__)


def prompt_set(config: RunConfig, prompts: Sequence[Prompt], progress: Progress = silent) -> PromptSet:
    """Blocks while it embeds what the cache does not hold, and says how far it is. The encoder is only touched where clusters
    are made of it."""
    ids = tuple(prompt.prompt_id for prompt in prompts)
    sources = tuple(prompt.source for prompt in prompts)
    difficulties = tuple(prompt.difficulty for prompt in prompts)
    if config.moments.clusters.by != "embedding":
        return PromptSet(ids, sources, difficulties)
    whole = config.moments.clusters.embed == "prompt"
    texts = [prompt.asked if whole else question_of(prompt) for prompt in prompts]
    embeddings = PromptEncoder(config.moments.clusters).encode(texts, progress)
    for sentence in blur([f"of source `{source}`" for source in sources], texts, embeddings):
        log.warning("%s", sentence)
    return PromptSet(ids, sources, difficulties, embeddings, encoder_fingerprint(config))


def question_of(prompt: Prompt) -> str:
    """What its source asks, as far as it is known apart; of a conversation all of it."""
    return prompt.question if prompt.question and prompt.asked == prompt.text else prompt.asked


def encoder_fingerprint(config: RunConfig) -> str:
    """Of the encoder that the clusters are made with, and what it reads of a prompt; "" where they are made with none."""
    clusters = config.moments.clusters
    if clusters.by != "embedding":
        return ""
    return PromptEncoder(clusters).fingerprint + ("" if clusters.embed == "prompt" else f":{clusters.embed}")


def overlaps(config: RunConfig, pool: PromptPool, near: bool) -> Sequence[str]:
    """What stands twice in the pool, or on both of its sides, one sentence each. near: by embedding too, which blocks."""
    twins, nearby = None, None
    if near:
        encoder = PromptEncoder(config.moments.clusters)
        train = encoder.encode([question_of(prompt) for prompt in pool.train])
        twins = near_duplicates(pool, train)
        nearby = near_overlap(pool, train, encoder.encode([question_of(prompt) for prompt in pool.held_out]))
    return sentences(exact_duplicates(pool), exact_overlap(pool), twins, nearby)


def embeds_on_gpu(config: RunConfig) -> bool:
    """Whether prompts are embedded on a GPU, which has to be done before engines and learner take its memory."""
    return config.moments.clusters.by == "embedding" and gpu() is not None


def refuse_missing_difficulty(config: RunConfig, prompts: Sequence[Prompt]) -> None:
    """Raise ConfigError if clusters are by difficulty and a prompt does not say how hard it is."""
    if config.moments.clusters.by != "difficulty":
        return
    silent = [prompt for prompt in prompts if not prompt.difficulty]
    if silent:
        names = ", ".join(sorted({prompt.source for prompt in silent}))
        raise ConfigError(
            f"moments.clusters.by: difficulty, but {len(silent)} training prompts do not say how hard they are "
            f"(sources {names}); give their lines a field `difficulty` or `level`, or choose another `by`"
        )
