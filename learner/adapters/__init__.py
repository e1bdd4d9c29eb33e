"""Low-rank adapters: few trained parameters beside a policy that stays as it is. A new kind: a file here, and its class in `AnyAdapter`.

The options are read without torch or peft; `layers.py` puts them into a model.
"""

from typing import Annotated

from pydantic import Field

from learner.adapters.lora import Lora
from learner.adapters.none import NoAdapter
from learner.adapters.options import Expert, LowRank
from learner.adapters.sos_lora import SosLora
from moments_service.strict import by_name

AnyAdapter = Annotated[Annotated[NoAdapter | Lora | SosLora, Field(discriminator="kind")], by_name("lora")]

__all__ = ["AnyAdapter", "Expert", "Lora", "LowRank", "NoAdapter", "SosLora"]
