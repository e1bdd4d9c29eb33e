"""How much of the feed each source gets, and when that changes. A curriculum is one file, and one entry here and in `options.py`."""

from actors.prompts.curricula.base import Curriculum
from actors.prompts.curricula.constant import ConstantWeights
from actors.prompts.options import PromptConfig

__all__ = ["ConstantWeights", "Curriculum", "curriculum_of"]


def curriculum_of(config: PromptConfig) -> Curriculum | None:
    """What says how a recipe's sources share the feed; None where it is one pool, and a source has as much of it as it has prompts."""
    weights = {source.name: source.weight for source in config.sources if source.weight is not None}
    return ConstantWeights(weights) if weights else None
