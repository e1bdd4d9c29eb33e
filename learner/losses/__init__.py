"""What is minimised and what is reported about it. A new loss: a file here, and its class in `AnyLoss`.

A loss is its own options model. Its file imports torch where it is called, not above: the configuration is read without torch.
"""

from typing import Annotated

from pydantic import Field

from learner.losses.cispo import Cispo
from learner.losses.dispo import Dispo
from learner.losses.gmpo import Gmpo
from learner.losses.gspo import Gspo
from learner.losses.luspo import Luspo
from learner.losses.ppo_clip import PpoClip
from learner.losses.protocol import Loss, LossInputs, Measured, Need
from learner.losses.r2vpo import R2vpo
from learner.losses.reinforce import Reinforce
from learner.losses.sapo import Sapo
from learner.losses.vespo import Vespo
from moments_service.config import BY_NAME

LossKind = PpoClip | Gspo | Cispo | Gmpo | Sapo | Luspo | Dispo | R2vpo | Vespo | Reinforce
AnyLoss = Annotated[Annotated[LossKind, Field(discriminator="kind")], BY_NAME]
"""All kinds."""

__all__ = ["AnyLoss", "Loss", "LossInputs", "LossKind", "Measured", "Need", "PpoClip", "Reinforce"]
