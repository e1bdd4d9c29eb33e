"""LoRA (arXiv 2106.09685)."""

from typing import Literal

from learner.adapters.options import LowRank


class Lora(LowRank):
    """LoRA on linear layers: W + alpha / rank * B A."""

    kind: Literal["lora"] = "lora"
