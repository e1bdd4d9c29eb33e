"""How the bytes of the weights get from the learner to the engines: what every transport keeps to."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from actors.weights.offer import Blob, WeightOffer


class Transport(Protocol):
    """Two ends of one way, each made in its own process: rank 0 of the learner writes and places, every rollout actor opens.

    What is in the bytes is not its business (`actors.weights.block`). It ends with its process.
    """

    def room(self, size: int) -> Blob:
        """[size] bytes for the next version, to be written and then placed. May hold anything, an older version say."""
        ...

    def place(self, blob: Blob, version: int, elsewhere: bool) -> Any:
        """Let engines find what `room` gave, now written; returns what `open` needs, which goes to them through Ray's object store.

        Versions go up by one, from that of the policy a run begins or resumes with, and room for one is asked for after the version
        before it has settled (every engine that serves holds it). What was placed before that one may then be released;
        that one itself may not, because an actor that comes back is still given it.

        elsewhere: whether any rollout actor is on another node than the learner's rank 0.
        """
        ...

    def open(self, placed: Any) -> tuple[Blob, str | None]:
        """(The bytes, in this process; the path at which other processes of this machine read them, if there is one.)

        They may be read-only, and stay as they are for as long as the array is held.
        Called in a thread, because sampling goes on meanwhile. Raises WeightsReleasedError for a version that was released.
        """
        ...


class TransportKind(Protocol):
    """What a recipe's `weights` section is: the options of one kind, and how an end of it is made."""

    def create(self) -> Transport:
        """One end, in the process that uses it."""
        ...


Room = Callable[[int], Blob]
"""`Transport.room`."""


async def fetched(offer: WeightOffer, transport: Transport) -> WeightOffer:
    """An offer as it came from the learner, with its Blob in this process as `address`; not checked yet.

    Raises WeightsReleasedError, and what Ray raises if the learner's node was lost.
    """
    placed = await offer.address
    blob, path = await asyncio.to_thread(transport.open, placed)
    return replace(offer, address=blob, path=path)
