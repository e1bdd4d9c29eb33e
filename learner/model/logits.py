"""What some architectures do to the logits after the head. The check at the start finds those that are not known here."""

from dataclasses import dataclass
from typing import Any

import torch

SCALES = {"logits_scaling": -1, "logit_scale": 1, "lm_head_multiplier": 1}
"""Config entries that divide (-1: Granite) or multiply (1: Cohere, Falcon-H1) the logits."""
CAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Config entries that bound the logits by cap * tanh(logits / cap): Gemma 2, RecurrentGemma."""


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """cap * tanh(scale * logits / cap), without a cap scale * logits."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, model_config: Any) -> "LogitTransform | None":
        """What a model's config asks for; None where the logits stay as they are."""
        scale = 1.0
        for name, power in SCALES.items():
            scale *= float(getattr(model_config, name, None) or 1.0) ** power
        cap = next((float(value) for name in CAPS if (value := getattr(model_config, name, None))), None)
        return None if scale == 1.0 and cap is None else cls(scale, cap)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """[..., V] to [..., V]."""
        scaled = logits * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)

    def slope(self, transformed: torch.Tensor) -> torch.Tensor:
        """[..., V] derivative at the logits that became `transformed`."""
        if self.cap is None:
            return torch.full_like(transformed, self.scale)
        return self.scale * (1.0 - (transformed / self.cap).square())
