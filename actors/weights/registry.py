"""The weight transports that a recipe can name. A new one is a file with its config and its class, and its config's name here."""

from typing import Annotated

from actors.weights.object_store import ObjectStoreConfig
from moments_service.config import BY_NAME

TransportConfig = Annotated[ObjectStoreConfig, BY_NAME]
"""With a second kind: `Annotated[Annotated[ObjectStoreConfig | Other, Field(discriminator="kind")], BY_NAME]`."""
