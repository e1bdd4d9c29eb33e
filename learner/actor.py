"""The Ray shell around one learner rank: opens payloads, answers the driver, holds no logic of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError

from actors.rollout.payload import GroupPayload
from actors.rollout.sample import Sample
from learner.batching.split import Share
from learner.config import LearnerConfig

if TYPE_CHECKING:
    from actors.weights.offer import WeightOffer
    from learner.batching.microbatch import TrainGroup


class LearnerActor:
    """Calls arrive in the order in which the driver sent them and run one at a time."""

    def __init__(
        self,
        config: LearnerConfig,
        policy_path: str,
        rank: int,
        world_size: int,
        total_steps: int,
        seed: int,
        measure_move: bool,
    ) -> None:
        # Here and not above: the driver imports this module and needs neither torch nor transformers.
        from learner.rank import LearnerRank, set_threads

        set_threads(config.cpus)
        self.rank = LearnerRank(config, policy_path, rank, world_size, total_steps, seed, measure_move)
        self.open_timeout_s = config.step_timeout_s
        self.updates: list[list[TrainGroup]] = []

    def listen(self, timeout_s: float) -> tuple[str, int]:
        """Address of this node and the port that the ranks meet at."""
        address = ray.util.get_node_ip_address()
        return address, self.rank.listen(address, timeout_s)

    def setup(self, master_addr: str, master_port: int, timeout_s: float) -> None:
        self.rank.setup(master_addr, master_port, timeout_s, own_address=ray.util.get_node_ip_address())

    def open(self, updates: Sequence[Sequence[Share]]) -> tuple[str, ...]:
        """Fetch the tokens of the next step; returns the ids of groups whose payload is lost. Not collective."""
        shares = [share for update in updates for share in update]
        from learner.batching.microbatch import TrainGroup

        payloads = open_payloads(shares, self.open_timeout_s)
        self.updates = [
            [TrainGroup(payloads[share.group_id], share.advantages) for share in update if share.group_id in payloads]
            for update in updates
        ]
        return tuple(share.group_id for share in shares if share.group_id not in payloads)

    def step(self, step: int) -> dict[str, float]:
        """Train on what `open` fetched."""
        updates, self.updates = self.updates, []
        return self.rank.step(updates, step)

    def export_weights(self, version: int, dtype: str) -> WeightOffer | None:
        """The policy, whose bytes lie in this node's object store; None on every rank but 0."""
        packed = self.rank.export_weights(version, dtype)
        if packed is None:
            return None
        offer, blob = packed
        return replace(offer, address=ray.put(blob))

    def save(self, directory: str) -> None:
        self.rank.save(directory)

    def load(self, directory: str) -> int:
        return self.rank.load(directory)

    def export_hf(self, directory: str, dtype: str) -> None:
        self.rank.export_hf(directory, dtype)


def open_payloads(shares: Sequence[Share], timeout_s: float) -> dict[str, GroupPayload]:
    """Payloads by group id; those that died with their owner are missing. Raises GetTimeoutError past the deadline."""
    deadline = time.monotonic() + timeout_s
    refs = [share.payload for share in shares if isinstance(share.payload, ray.ObjectRef)]
    if refs:  # all transfers at once
        ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
    payloads = {}
    for share in shares:
        payload = share.payload
        if isinstance(payload, ray.ObjectRef):
            try:
                payload = ray.get(payload, timeout=max(1.0, deadline - time.monotonic()))
            except (ObjectLostError, RayActorError):
                continue
            except GetTimeoutError as error:
                raise GetTimeoutError(f"payload of group {share.group_id} did not arrive in {timeout_s:g} s") from error
        payloads[share.group_id] = payload if isinstance(payload, GroupPayload) else _of_samples(payload)
    return payloads


def _of_samples(samples: tuple[Sample, ...]) -> GroupPayload:
    """Until the learner takes samples as they are."""
    masks = [sample.loss_mask for sample in samples]
    start = int(masks[0].argmax()) if masks[0].any() else len(masks[0])
    return GroupPayload(
        group_id=samples[0].group_id,
        prompt_ids=samples[0].token_ids[:start],
        completions=tuple(sample.token_ids[mask] for sample, mask in zip(samples, masks, strict=True)),
        logprobs=tuple(sample.logprobs[mask] for sample, mask in zip(samples, masks, strict=True)),
        versions=tuple(sample.versions[mask] for sample, mask in zip(samples, masks, strict=True)),
        temperature=samples[0].temperature,
    )
