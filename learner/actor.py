"""The Ray shell around one learner rank: opens payloads, answers the driver, holds no logic of its own."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError

from actors.rollout.sample import Sample
from learner.config import LearnerConfig
from learner.job import LearnerJob
from moments_service.heap import freeze_heap

if TYPE_CHECKING:
    from actors.weights.offer import WeightOffer
    from learner.batching.pack import ScoredSamples
    from learner.blame import Whereabouts
    from learner.token_values import TokenValues

Share = tuple[str, Any, np.ndarray]
"""One group on its way to a rank: its id, its payload (an ObjectRef or what it refers to), the advantages of its samples."""


class LearnerActor:
    """Calls arrive in the order in which the driver sent them and run one at a time, but for `write` and `where`."""

    def __init__(self, config: LearnerConfig, job: LearnerJob, rank: int) -> None:
        # Here and not above: the driver imports this module and needs neither torch nor transformers.
        from learner.rank import LearnerRank, set_threads

        set_threads(config.cpus)
        self.rank = LearnerRank(config, job, rank, config.world_size)
        self.transport = job.weights.create()
        self.open_timeout_s = config.step_timeout_s
        self.updates: list[list[ScoredSamples]] = []

    def node_address(self) -> str:
        """Address of the node that this rank is on."""
        return str(ray.util.get_node_ip_address())

    def listen(self, address: str, timeout_s: float) -> int:
        """The port of `address` that the ranks meet at."""
        return self.rank.listen(address, timeout_s)

    def setup(self, master_addr: str, master_port: int, timeout_s: float, own_address: str) -> None:
        self.rank.setup(master_addr, master_port, timeout_s, own_address)
        freeze_heap()

    def open(self, updates: Sequence[Sequence[Share]]) -> tuple[str, ...]:
        """Fetch the tokens of the next step; returns the ids of groups whose payload is lost. Not collective."""
        shares = [share for update in updates for share in update]
        opened = open_payloads(shares, self.open_timeout_s)
        self.updates = [
            [(opened[group_id], advantages) for group_id, _, advantages in update if group_id in opened]
            for update in updates
        ]
        return tuple(group_id for group_id, _, _ in shares if group_id not in opened)

    def step(self, step: int, keep: Collection[str] = ()) -> dict[str, float]:
        """Train on what `open` fetched."""
        updates, self.updates = self.updates, []
        return self.rank.step(updates, step, keep)

    def take_token_values(self) -> list[TokenValues]:
        return self.rank.take_token_values()

    def export_weights(self, version: int, elsewhere: bool = False) -> tuple[Any, WeightOffer | None, float]:
        """What the transport placed, offer and seconds; of ranks other than 0 the seconds alone. elsewhere: see `Transport.place`.

        Called with three returns, so that the driver waits for the last and never fetches the first.
        """
        started = time.perf_counter()
        offer, blob = self.rank.export_weights(version, self.transport.room) or (None, None)
        placed = None if blob is None else self.transport.place(blob, version, elsewhere)
        return placed, offer, time.perf_counter() - started

    def capture(self) -> None:
        self.rank.capture()

    def write(self, directory: str) -> None:
        """In a thread of its own, beside other calls."""
        self.rank.write(directory)

    def where(self) -> Whereabouts:
        """In a thread of its own, so that a rank that hangs answers too."""
        return self.rank.position.ask()

    def load(self, directory: str) -> int:
        return self.rank.load(directory)

    def export_hf(self, directory: str) -> None:
        self.rank.export_hf(directory)


def open_payloads(shares: Sequence[Share], timeout_s: float) -> dict[str, tuple[Sample, ...]]:
    """Samples by group id; those that died with their owner are missing. Raises GetTimeoutError past the deadline."""
    deadline = time.monotonic() + timeout_s
    refs = [payload for _, payload, _ in shares if isinstance(payload, ray.ObjectRef)]
    if refs:  # all transfers at once
        ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
    opened = {}
    for group_id, payload, _ in shares:
        if isinstance(payload, ray.ObjectRef):
            try:
                payload = ray.get(payload, timeout=max(1.0, deadline - time.monotonic()))
            except (ObjectLostError, RayActorError):
                continue
            except GetTimeoutError as error:
                raise GetTimeoutError(f"payload of group {group_id} did not arrive in {timeout_s:g} s") from error
        opened[group_id] = as_samples(group_id, payload)
    return opened


def as_samples(group_id: str, payload: Any) -> tuple[Sample, ...]:
    """The samples of an opened payload. Raises TypeError where it holds anything else."""
    if not isinstance(payload, tuple) or not all(isinstance(sample, Sample) for sample in payload):
        raise TypeError(f"payload of group {group_id} is a {type(payload).__name__}, expected a tuple of Sample")
    return payload
