"""What is minimised and what is reported about it. A new loss: a file here, and its class in `AnyLoss`.

A loss is its own options model. Its file imports torch where it is called, not above: the configuration is read without torch.
"""

from typing import Annotated

from learner.losses.ppo_clip import PpoClip
from learner.losses.protocol import Loss, LossInputs, Measured, Need
from moments_service.config import BY_NAME

AnyLoss = Annotated[PpoClip, BY_NAME]
"""All kinds. From the second on: `Annotated[Annotated[A | B, Field(discriminator="kind")], BY_NAME]`."""

__all__ = ["AnyLoss", "Loss", "LossInputs", "Measured", "Need", "PpoClip"]
