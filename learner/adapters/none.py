"""No adapter: the policy's own parameters are trained."""

from typing import Literal

from moments_service.config import StrictModel


class NoAdapter(StrictModel):
    """The policy's own parameters are trained, those that `learner.trainable` matches."""

    kind: Literal["none"] = "none"
