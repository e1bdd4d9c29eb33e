"""What a user can set about the learner."""

from typing import Literal

from pydantic import Field

from actors.config import Placement
from moments_service.config import StrictModel


class OptimizerConfig(StrictModel):
    """AdamW with linear warm-up, cosine decay and gradient clipping."""

    lr: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps of linear warm-up."""
    final_lr_share: float = Field(0.1, ge=0, le=1)
    """Learning rate at the end of the cosine, as a share of the peak; 1 keeps it constant."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""


class LossConfig(StrictModel):
    """PPO-clip with the aggregation of GRPO and BV-Blend: mean over tokens, then completions, then prompts."""

    clip_low: float = Field(0.2, gt=0, lt=1)
    """Lower clip of the probability ratio is 1 minus this."""
    clip_high: float = Field(0.2, gt=0)
    """Upper clip of the probability ratio is 1 plus this."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    kl_coef: float = Field(0.0, ge=0)
    """Weight of the KL penalty (k3) to the starting policy; 0 loads no reference model."""


class LearnerConfig(StrictModel):
    """FSDP2 learner ranks: parallelism, precision, memory, optimiser and loss."""

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
    trainable: str = ".*"
    """Regular expression: only parameters whose name matches it are trained."""
    updates_per_batch: int = Field(1, ge=1)
    """Optimiser steps that a batch is split into."""
    microbatch_tokens: int = Field(8192, ge=1)
    """Most tokens (padding included) in one forward and backward of a rank."""
    share_prompt: bool = True
    """Encode a group's prompt once for all its completions; turn off for completions much longer than prompts."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    step_timeout_s: float = Field(1800.0, gt=0)
    """Deadline for one policy step."""
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
