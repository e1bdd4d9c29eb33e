"""The engines that a recipe can name, with their options. Importing this needs neither vLLM nor transformers.

A new one is a file with its config and its class (what is slow to import goes into `create`), and its config's name in the union.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from moments_service.config import BY_NAME, StrictModel
from moments_service.seeding import derive_seed

if TYPE_CHECKING:
    from actors.config import RolloutConfig
    from actors.engines.protocol import Engine


class VllmConfig(StrictModel):
    """vLLM, on CPU or GPU."""

    kind: Literal["vllm"] = "vllm"
    max_concurrent: int = Field(256, ge=1)
    """Most samples that it decodes at once."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """CPU: memory of the key-value cache."""
    gpu_memory_share: float = Field(0.85, gt=0, le=1)
    """GPU: share of the memory that the engine may take."""

    def create(self, rollout: "RolloutConfig", policy: str, seed: int, index: int) -> "Engine":
        """Importing vLLM makes this take seconds."""
        from actors.engines.vllm import VllmEngine

        return VllmEngine(self, rollout, policy, derive_seed(seed, "engine", index) % 2**31)


class TransformersConfig(StrictModel):
    """transformers' own `generate`, where vLLM cannot run: one request at a time, the same samples whatever their order."""

    kind: Literal["transformers"] = "transformers"

    def create(self, rollout: "RolloutConfig", policy: str, seed: int, index: int) -> "Engine":
        """Nothing of it depends on seed and index: each request brings its own."""
        from actors.engines.transformers import TransformersEngine

        return TransformersEngine(rollout, policy)


EngineConfig = Annotated[Annotated[VllmConfig | TransformersConfig, Field(discriminator="kind")], BY_NAME]
