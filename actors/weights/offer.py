"""What travels when the policy changes: an offer that says what there is and where, and the tensors behind its address."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Blob = npt.NDArray[np.uint8]
"""[bytes]: all tensors of an offer, see `actors.weights.block`."""
Kind = Literal["full", "adapter", "delta"]


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of an offer: its name in the policy's files, torch dtype name, full shape and the checksum of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    checksum: str


@dataclass(frozen=True, slots=True)
class WeightOffer:
    """The policy at one version, for whoever samples with it. Small; the tensors stay behind `address` until a sink takes them.

    `full` holds every tensor; `adapter` the pairs of `actors.engines.adapters` to add to `base_version`, which is 0, the policy that
    engines load at their start; `delta` what changed since `base_version`.
    """

    version: int
    kind: Kind
    base_version: int | None
    manifest: tuple[TensorEntry, ...]
    address: Any
    """A Ray ObjectRef of what the transport placed, and once the offer is fetched its Blob."""
    path: str | None = None
    """Once the offer is fetched: where other processes of this machine read that Blob, if they can."""


class WeightError(RuntimeError):
    """Weights that did not arrive whole, or do not fit; the engine that saw them must not serve."""


class WeightsReleasedError(RuntimeError):
    """The weights of an offer are no longer kept, because newer ones have settled; take those."""


class WeightSource(Protocol):
    """Where weights come from: the learner."""

    async def offer(self, version: int) -> WeightOffer:
        """The policy as it is now, as `version`. Good until the next one has settled."""
        ...


class WeightSink(Protocol):
    """Where weights go: everything that samples. Takes an offer whole or not at all."""

    async def take(self, offer: WeightOffer) -> None:
        """Returns when no token comes from older weights any more. Raises WeightError."""
        ...
