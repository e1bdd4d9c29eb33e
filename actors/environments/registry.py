"""The environments that a recipe can name. A new one is a file with its config and its class, and its config's name here."""

from typing import Annotated

from actors.environments.single_turn import SingleTurnConfig
from moments_service.config import BY_NAME

EnvironmentConfig = Annotated[SingleTurnConfig, BY_NAME]
"""With a second kind: `Annotated[Annotated[SingleTurnConfig | Other, Field(discriminator="kind")], BY_NAME]`."""
