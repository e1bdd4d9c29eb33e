"""How much of the feed each source gets, and when that changes. A curriculum is one file, and one entry here and in `options.py`."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from actors.prompts.curricula.base import Curriculum
from actors.prompts.curricula.constant import ConstantWeights
from actors.prompts.curricula.pass_rate import PassRateWeights
from actors.prompts.curricula.steps import StepWeights

if TYPE_CHECKING:
    from actors.prompts.options import PromptConfig

__all__ = ["CURRICULA", "ConstantWeights", "Curriculum", "curriculum_of"]

CURRICULA: dict[str, Callable[[Any, Mapping[str, float]], Curriculum]] = {
    "steps": lambda options, weights: StepWeights(options),
    "pass_rate": PassRateWeights,
}
"""How each is made: from its options and the weights that sources name."""


def curriculum_of(config: "PromptConfig") -> Curriculum | None:
    """What says how a recipe's sources share the feed; None where it is one pool, and a source has as much of it as it has prompts."""
    from actors.prompts.options import fresh_sources  # late: it imports the options of curricula

    weights = {source.name: source.weight for source in config.sources if source.weight is not None}
    if config.curriculum is not None:
        return CURRICULA[config.curriculum.kind](config.curriculum, weights)
    if not weights and fresh_sources(config):
        # Its prompts are counted as places, which a share of all of them does; it is the only one.
        weights = {source.name: 1.0 for source in config.sources}
    return ConstantWeights(weights) if weights else None
