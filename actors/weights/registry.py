"""The weight transports that a recipe can name. A new one is a file with its config and its class, and its config's name here."""

from typing import Annotated

from pydantic import Field

from actors.weights.object_store import ObjectStoreConfig
from actors.weights.shared_memory import SharedMemoryConfig
from moments_service.config import BY_NAME

TransportConfig = Annotated[Annotated[SharedMemoryConfig | ObjectStoreConfig, Field(discriminator="kind")], BY_NAME]
