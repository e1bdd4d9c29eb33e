"""How the bytes of the weights get from the learner to the engines: what every transport keeps to."""

import asyncio
from dataclasses import replace
from typing import Any, Protocol

from actors.weights.offer import Blob, WeightOffer


class Transport(Protocol):
    """Two ends of one way, each made in its own process: rank 0 of the learner places, every rollout actor opens.

    Packing and checking are not its business (`actors.weights.block`). It ends with its process.
    """

    def place(self, blob: Blob, version: int) -> Any:
        """Put the bytes where engines find them; returns what `open` needs, which goes to them through Ray's object store.

        Versions go up by one, from that of the policy a run begins or resumes with, and one is placed after the version
        before it has settled (every engine that serves holds it). What was placed before that one may then be released;
        that one itself may not, because an actor that comes back is still given it.
        """
        ...

    def open(self, placed: Any) -> Blob:
        """The bytes, in this process; they may be read-only, and stay valid for as long as the array is held.

        Called in a thread, because sampling goes on meanwhile. Raises WeightsReleasedError for a version that was released.
        """
        ...


class TransportKind(Protocol):
    """What a recipe's `weights` section is: the options of one kind, and how an end of it is made."""

    def create(self) -> Transport:
        """One end, in the process that uses it."""
        ...


async def fetched(offer: WeightOffer, transport: Transport) -> WeightOffer:
    """An offer as it came from the learner, with its Blob in this process as `address`; not checked yet.

    Raises WeightsReleasedError, and what Ray raises if the learner's node was lost.
    """
    placed = await offer.address
    return replace(offer, address=await asyncio.to_thread(transport.open, placed))
