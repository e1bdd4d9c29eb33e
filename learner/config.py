"""What a user can set about the learner."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from actors.config import Placement
from actors.engines.adapter_plan import AdapterPlan
from learner.adapters import AnyAdapter, LowRank, NoAdapter
from learner.aggregations import AnyAggregation, SeqMeanTokenMean
from learner.corrections import AnyCorrection, NoCorrection
from learner.losses import AnyLoss, PpoClip
from learner.losses.kl import KlEstimator
from learner.losses.luspo import Luspo
from learner.losses.old_logprobs import AnyOld, Average, Recompute, Rollout
from learner.losses.protocol import Need
from learner.masks import AnyMask, Capo
from learner.optim import AdamW, AnyOptimizer, AnySchedule, Cosine
from learner.patterns import Pattern
from moments_service.config import StrictModel
from moments_service.paths import PathText

START = "start"
"""As a reference policy: the policy that the run begins with."""


class KlConfig(StrictModel):
    """KL penalty to a reference policy."""

    coef: float = Field(0.0, ge=0)
    """Weight of the KL penalty to the reference policy; 0 holds none."""
    estimator: KlEstimator = "k3"
    """How it is estimated from sampled tokens; `k3_k2` has the value of k3 and the gradient of k2."""
    place: Literal["loss", "reward"] = "loss"
    """Added to the loss, or taken off the tokens' advantages, as k1 without a gradient (the moments never see it)."""
    reference: PathText = START
    """`start`: the policy that the run begins with; or a Hugging Face directory with one of its architecture, relative to the recipe."""
    refresh_every: int | None = Field(None, ge=1)
    """Policy steps after which the reference becomes the policy as it is then, again and again; none keeps it."""

    @model_validator(mode="before")
    @classmethod
    def _k1_in_the_reward(cls, data: Any) -> Any:
        """In the reward's place k1 is the default: no other estimator has the KL's gradient there."""
        return {"estimator": "k1", **data} if isinstance(data, dict) and data.get("place") == "reward" else data

    @model_validator(mode="after")
    def _only_k1_in_the_reward(self) -> Self:
        if self.place == "reward" and self.estimator != "k1":
            raise ValueError(
                f"estimator = {self.estimator} has not the KL's gradient with place = reward; take k1 there"
            )
        return self


class MemoryConfig(StrictModel):
    """What is traded for memory."""

    activation_checkpointing: Literal["none", "layer", "selective"] = "none"
    """Activations computed again in the backward pass: none, all of a layer, or all but attention and matrix products."""
    compile: bool = False
    """Compile the decoder layers with torch.compile: costs a minute at the start; on a CPU it needs a C++ compiler."""
    offload_optimizer: bool = False
    """Keep the optimiser's state in host memory; a step brings it to the GPU a part at a time."""
    head: Literal["auto", "chunked", "liger"] = "auto"
    """Output head: in chunks, or Liger's fused kernel (Hopper, bfloat16, `liger-kernel[cutedsl]`); auto takes it where it runs."""
    logit_elements: int | None = Field(None, ge=1)
    """Logits that the output head holds at once; none takes 4 million on a CPU and 32 million on a GPU."""


class LearnerConfig(StrictModel):
    """FSDP2 learner ranks: parallelism, precision, memory, and what they minimise and how."""

    world_size: int = Field(1, ge=1)
    """Number of FSDP ranks."""
    cpus: float = Field(1, gt=0)
    """CPUs reserved for each rank; also its torch threads."""
    gpus: float = Field(0, ge=0)
    """GPUs reserved for each rank; 0 trains on gloo, above 0 on NCCL."""
    placement: Placement = "pack"
    """How the ranks share the nodes: together on few (`pack`), or over many (`spread`); `strict_` insists on one, or one each."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of forward and backward; master weights and reductions stay float32."""
    trainable: Pattern = ".*"
    """Regular expression: only parameters whose name matches it are trained."""
    updates_per_batch: int = Field(1, ge=1)
    """Optimiser steps that a batch is split into."""
    microbatch_tokens: int = Field(8192, ge=1)
    """Most tokens in one forward and backward of a rank; what samples share counts once."""
    share_prompt: bool = True
    """Compute what samples of a group begin with once, prompt or sampled; off: every sample by itself."""
    step_timeout_s: float = Field(1800.0, gt=0)
    """Deadline for one policy step."""
    max_skipped: int = Field(3, ge=1)
    """Updates in a row whose loss or gradient is not finite that end the run; fewer are skipped, counted and kept for inspection."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    mask_truncated: bool = False
    """Leave completions that a length limit ended out of the loss; they still count in history, and in their group's baseline."""
    loss: AnyLoss = PpoClip()
    """What is minimised for each token (docs/learner.md says which when)."""
    old_logprobs: AnyOld = Recompute()
    """Where ratios start: at the policy before the first update, at the sampler's own log-probs (`rollout`), between the two by the
    token's age (`interpolate`), or at a moving `average` of the policy."""
    correction: AnyCorrection = NoCorrection()
    """What a token counts that another policy sampled (docs/learner.md says which when)."""
    aggregation: AnyAggregation = SeqMeanTokenMean()
    """What each token counts in the loss of the batch."""
    masks: tuple[AnyMask, ...] = ()
    """Tokens that are left out of the loss, or held back in it; each kind once."""
    kl: KlConfig = KlConfig()
    memory: MemoryConfig = MemoryConfig()
    adapter: AnyAdapter = NoAdapter()
    """Whether the policy's own parameters are trained, or a low-rank adapter beside them."""
    optimizer: AnyOptimizer = AdamW()
    """How gradients become steps."""
    schedule: AnySchedule = Cosine()
    """The learning rate over the run, as a share of its peak."""

    @model_validator(mode="after")
    def _each_mask_stands_once(self) -> Self:
        kinds = [mask.kind for mask in self.masks]
        if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise ValueError(f"masks: {', '.join(twice)} stands there twice; one of each kind is enough")
        return self

    @model_validator(mode="after")
    def _moments_are_where_they_are_read(self) -> Self:
        if self.memory.offload_optimizer and any(isinstance(mask, Capo) for mask in self.masks):
            raise ValueError(
                "masks: capo reads the optimiser's moments every update; set memory.offload_optimizer: false"
            )
        return self

    @model_validator(mode="after")
    def _the_sampler_counts_once(self) -> Self:
        if isinstance(self.old_logprobs, Rollout) and not isinstance(self.correction, NoCorrection):
            raise ValueError(
                f"correction = {self.correction.kind} weighs by old_logprobs over the sampler's, which with old_logprobs = rollout are "
                "the same: the loss's own ratio corrects already; leave the correction out, or take old_logprobs: recompute"
            )
        return self

    @model_validator(mode="after")
    def _old_log_probs_are_asked_for(self) -> Self:
        in_reward = self.kl.coef > 0 and self.kl.place == "reward"
        if not isinstance(self.old_logprobs, Recompute) and "old" not in self.needs and not in_reward:
            raise ValueError(
                f"old_logprobs = {self.old_logprobs.kind} is where ratios start, and loss = {self.loss.kind} has none; leave it out, or "
                "take a loss with a ratio"
            )
        return self

    @model_validator(mode="after")
    def _lengths_are_counted_once(self) -> Self:
        if isinstance(self.loss, Luspo) and not isinstance(self.aggregation, SeqMeanTokenMean):
            raise ValueError(
                f"loss = luspo multiplies by the sample's length, which aggregation = {self.aggregation.kind} does not divide "
                "by; take seq_mean_token_mean, or loss = gspo"
            )
        return self

    @property
    def device(self) -> str:
        """Where a rank computes, as torch names it; a rank sees no other GPU than its own."""
        return "cuda:0" if self.gpus > 0 else "cpu"

    @property
    def needs(self) -> frozenset[Need]:
        """What the loss, the correction and the masks need beside the log-probs of now."""
        return self.loss.needs.union(self.correction.needs, *(mask.needs for mask in self.masks))

    @property
    def average(self) -> Average | None:
        """How a moving average of the policy is kept, where one is."""
        return self.old_logprobs if isinstance(self.old_logprobs, Average) else None

    @property
    def published_adapter(self) -> AdapterPlan | None:
        """What engines must know where they are sent adapters alone."""
        if isinstance(self.adapter, LowRank) and self.adapter.publish == "adapter":
            return AdapterPlan(self.adapter.rank, self.adapter.targets)
        return None

    @property
    def compares(self) -> bool:
        """Whether a reference policy is needed."""
        return self.kl.coef > 0 or "reference" in self.needs

    @model_validator(mode="after")
    def _a_refreshed_reference_has_the_policy_s_base(self) -> Self:
        kl = self.kl
        if not isinstance(self.adapter, NoAdapter) and kl.refresh_every is not None and kl.reference != START:
            raise ValueError(
                f"kl.refresh_every = {kl.refresh_every} would make of kl.reference = {kl.reference} a policy with another base than "
                f"adapter = {self.adapter.kind} stands on; take one of the two"
            )
        return self

    @model_validator(mode="after")
    def _an_adapter_is_trained_alone(self) -> Self:
        if not isinstance(self.adapter, NoAdapter) and self.trainable != ".*":
            raise ValueError(
                f"trainable = {self.trainable!r} chooses among the policy's own parameters, which adapter = {self.adapter.kind} "
                "leaves as they are; choose layers with adapter.targets"
            )
        return self
