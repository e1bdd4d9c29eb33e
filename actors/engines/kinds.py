"""The engines that a recipe can name, with their options. Importing this needs neither vLLM nor transformers.

A new one is a file with its config and its class, and its config's name in the union.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from moments_service.config import BY_NAME, StrictModel


class VllmConfig(StrictModel):
    """vLLM, on CPU or GPU."""

    implementation: ClassVar = "actors.engines.vllm:VllmEngine"
    kind: Literal["vllm"] = "vllm"
    max_concurrent: int = Field(256, ge=1)
    """Most samples that it decodes at once."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """CPU: memory of the key-value cache."""
    gpu_memory_share: float = Field(0.85, gt=0, le=1)
    """GPU: share of the memory that the engine may take."""


class TransformersConfig(StrictModel):
    """transformers' own `generate`, where vLLM cannot run: one request at a time, the same samples whatever their order."""

    implementation: ClassVar = "actors.engines.transformers:TransformersEngine"
    kind: Literal["transformers"] = "transformers"


EngineConfig = Annotated[Annotated[VllmConfig | TransformersConfig, Field(discriminator="kind")], BY_NAME]
