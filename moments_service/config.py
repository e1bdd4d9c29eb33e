"""What a user can set about the moments service. One field, one sentence under it."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from moments_service.estimators import ESTIMATORS, AnyEstimator
from moments_service.estimators.bv_blend import BlendConfig
from moments_service.estimators.hierarchical import HierarchicalOptions
from moments_service.moments import ClusterMoments
from moments_service.moments.create import MomentsKind, create_moments
from moments_service.paths import PathText
from moments_service.strict import BY_NAME, StrictModel
from moments_service.suggestions import nearest

__all__ = ["BY_NAME", "BlendConfig", "ClusterConfig", "HealthConfig", "MomentsConfig", "StrictModel"]

DEFAULT = HierarchicalOptions()
DEFAULT_OPTIONS = HierarchicalOptions.model_fields.keys()


def _known(value: Any) -> Any:
    """Refuse other names with the nearest one; options without a name are those of the default, or of `bv_blend` alone."""
    name = value.get("kind") if isinstance(value, dict) else value
    if isinstance(name, str) and name not in ESTIMATORS:
        raise ValueError(f"unknown estimator {name!r}{nearest(name, ESTIMATORS)}")
    if not isinstance(value, dict):
        return value
    only_blend = bool(value) and value.keys() <= BlendConfig.model_fields.keys() - DEFAULT_OPTIONS
    return {"kind": "bv_blend" if only_blend else DEFAULT.kind, **value}


class ClusterConfig(StrictModel):
    """Which prompts share their history: FAISS spherical k-means over the encoder's embeddings, or a label."""

    by: Literal["embedding", "source", "difficulty", "prompt"] = "embedding"
    """`embedding` finds alike prompts; the others take the label that prompts carry, `prompt` each by itself."""
    count: Annotated[int, Field(ge=1)] | Literal["auto"] = 16
    """Embedding: number of clusters, never more than distinct prompts; `auto` takes the last doubling that pays."""
    adapt: bool = False
    """Embedding: at each periodic checkpoint, split clusters of unlike prompts and retire dead ones."""
    embed: Literal["question", "prompt"] = "question"
    """Embedding: of each prompt the question alone, or all that the policy reads, with template and solved examples."""
    encoder: PathText = "minilm"
    """`minilm` (all-MiniLM-L6-v2 from its wheel, offline) or the path of a sentence-transformers directory."""
    cache_dir: PathText = Field("~/.cache/bvblend/embeddings", validate_default=True)
    """Where embeddings are kept, by encoder and text hash."""


class HealthConfig(StrictModel):
    """Alarms when rewards or errors suddenly are not what history says."""

    reaction: Literal["log", "pause", "stop"] = "log"
    """What the run does before it trains on a batch that raised an alarm; a paused one waits until RUN/paused is removed."""
    threshold: float = Field(6.0, gt=0)
    """How far, in standard deviations summed up over batches, an average may leave what is expected of it."""
    error_share: float = Field(0.1, gt=0, le=1)
    """Share of a batch's completions without a reward (verifier errors, aborts) above which an alarm is raised at once."""


class MomentsConfig(StrictModel):
    """The moments service: which estimator turns rewards into advantages, over which clusters."""

    estimator: Annotated[Annotated[AnyEstimator, Field(discriminator="kind")], BY_NAME, BeforeValidator(_known)] = (
        DEFAULT
    )
    """How rewards become advantages: the name of an estimator, or `kind` with the options of that one."""
    clusters: ClusterConfig = ClusterConfig()
    health: HealthConfig = HealthConfig()

    @property
    def blend(self) -> BlendConfig:
        """How history is kept and trusted: as BV-Blend is told, or by its defaults where another estimator looks at it."""
        return self.estimator if isinstance(self.estimator, BlendConfig) else BlendConfig()

    @property
    def moments_kind(self) -> MomentsKind:
        """How the estimator wants its history kept."""
        if isinstance(self.estimator, HierarchicalOptions):
            return "tracked"
        return "paper" if self.blend.variant == "paper" else "decayed"

    def create_moments(self, clusters: int) -> ClusterMoments:
        """Empty moments of that kind."""
        return create_moments(self.moments_kind, self.blend, clusters)
