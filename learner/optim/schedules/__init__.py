"""Learning rates over time, as shares of the peak. A new one: a file here, and its class in `AnySchedule`."""

from typing import Annotated

from pydantic import Field

from learner.optim.schedules.constant import Constant
from learner.optim.schedules.cosine import Cosine
from learner.optim.schedules.linear import Linear
from learner.optim.schedules.wsd import Wsd
from moments_service.strict import by_name

AnySchedule = Annotated[Annotated[Constant | Linear | Cosine | Wsd, Field(discriminator="kind")], by_name("cosine")]

__all__ = ["AnySchedule", "Constant", "Cosine", "Linear", "Wsd"]
