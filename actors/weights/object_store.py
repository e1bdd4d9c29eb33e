"""Weights through Ray's object store: each node fetches them once, and the processes on it share them without a copy."""

from typing import Literal

import numpy as np

from actors.weights.offer import Blob
from actors.weights.transport import Transport
from moments_service.config import StrictModel


class ObjectStoreConfig(StrictModel):
    """Through Ray's object store, in the memory of the nodes: for workers in containers that do not see each other's processes."""

    kind: Literal["object_store"] = "object_store"

    def create(self) -> Transport:
        return ObjectStore()


class ObjectStore:
    """What is placed are the bytes themselves, which Ray copies. It releases them with the last reference to their offer."""

    def __init__(self) -> None:
        self._room: Blob = np.empty(0, dtype=np.uint8)

    def room(self, size: int) -> Blob:
        if len(self._room) != size:
            self._room = np.empty(size, dtype=np.uint8)
        return self._room

    def place(self, blob: Blob, version: int, elsewhere: bool) -> Blob:
        return blob

    def open(self, placed: Blob) -> tuple[Blob, None]:
        return placed, None
