"""The driver's handle on all learner ranks: starts them, steps them, publishes their weights, ends them."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from actors.placement import Part, bundle, place_in, reserve
from actors.weights.offer import WeightOffer
from learner.actor import LearnerActor
from learner.batching.split import split_batch
from learner.config import LearnerConfig
from learner.errors import LearnerError, PayloadLostError
from moments_service.messages.batch import Batch

DEATH_NOTICE_S = 5.0
"""After one rank's error, how long the others get to report, so that a dead rank is blamed before its neighbours."""


def learner_part(config: LearnerConfig) -> Part:
    """What the learner ranks ask of the cluster."""
    each = bundle(config.cpus, config.gpus)
    return Part("learner rank", "learner", config.world_size, each, config.placement)


class LearnerGroup:
    """Async handle on `world_size` ranks in one placement group. One call at a time; after a LearnerError only `close`.

    Consumes: batches of the moments service, whose payloads only the ranks open. Waits for: ranks and rollout actors,
    each wait with a deadline. Ends: by `close`, or with the driver.
    """

    def __init__(self, config: LearnerConfig, rollout_dtype: str, places: PlacementGroup, ranks: list[Any]) -> None:
        self.config = config
        self.rollout_dtype = rollout_dtype
        self.places = places
        self.ranks = ranks

    @classmethod
    async def start(
        cls,
        config: LearnerConfig,
        policy_path: str,
        total_steps: int,
        seed: int,
        rollout_dtype: str,
        start_timeout_s: float,
        measure_move: bool = False,
    ) -> "LearnerGroup":
        """Reserve resources, start the ranks, load and shard the policy.

        total_steps: policy steps of the whole run, for the schedule.    rollout_dtype: torch name of the dtype in which
        weights are published and exported.    measure_move: see `LearnerRank`. Raises NoRoomError where no nodes hold the
        ranks in `start_timeout_s`, LearnerError past it for any other part, or when a rank fails.
        """
        group = cls(config, rollout_dtype, await reserve(learner_part(config), start_timeout_s), [])
        try:
            group.ranks = [
                _start_rank(config, policy_path, rank, total_steps, seed, measure_move, group.places)
                for rank in range(config.world_size)
            ]
            (address, port), *_ = await group._gather(
                [group.ranks[0].listen.remote(start_timeout_s)], "opening the rendezvous", start_timeout_s
            )
            doing = "meeting and loading the policy"
            await group._all("setup", doing, start_timeout_s, address, port, start_timeout_s)
        except BaseException:
            await group.close()
            raise
        return group

    async def step(self, batch: Batch) -> dict[str, float]:
        """Train on a batch; returns metrics as floats, see `LearnerRank.step`, plus `open_s`.

        Raises PayloadLostError before anything was trained when payloads died with their actors; LearnerError otherwise.
        """
        started = time.perf_counter()
        plan = split_batch(batch.groups, self.config.updates_per_batch, self.config.world_size)
        timeout_s = self.config.step_timeout_s
        opening = [rank.open.remote(updates) for rank, updates in zip(self.ranks, plan, strict=True)]
        lost = await self._gather(opening, f"opening the payloads of step {batch.step}", timeout_s)
        if any(lost):
            raise PayloadLostError(tuple(group_id for ids in lost for group_id in ids))
        open_s = time.perf_counter() - started
        metrics = await self._all("step", f"step {batch.step}", timeout_s, batch.step)
        return metrics[0] | {"open_s": open_s}

    async def offer(self, version: int) -> WeightOffer:
        """The policy as it is now, as `version`, once its bytes lie in rank 0's object store; good until the next offer."""
        timeout_s = self.config.step_timeout_s
        offers = await self._all("export_weights", f"packing version {version}", timeout_s, version, self.rollout_dtype)
        offer: WeightOffer = offers[0]
        return offer

    async def save(self, directory: str) -> None:
        """Write a checkpoint into `directory`, on a file system that all ranks see."""
        await self._all("save", f"saving {directory}", self.config.step_timeout_s, directory)

    async def load(self, directory: str) -> int:
        """Read a checkpoint, written by any world size; returns how many policy steps it had done."""
        done = await self._all("load", f"loading {directory}", self.config.step_timeout_s, directory)
        return int(done[0])

    async def export_hf(self, directory: str) -> None:
        """Write a Hugging Face directory (config, tokenizer files, weights in the rollout dtype) on rank 0's node."""
        timeout_s = self.config.step_timeout_s
        await self._all("export_hf", f"exporting to {directory}", timeout_s, directory, self.rollout_dtype)

    async def close(self) -> None:
        """End the ranks and give their resources back. Safe to call twice and after errors."""
        for rank in self.ranks:
            ray.kill(rank, no_restart=True)
        self.ranks = []
        await asyncio.to_thread(remove_placement_group, self.places)

    async def _all(self, method: str, doing: str, timeout_s: float, *arguments: Any) -> list[Any]:
        return await self._gather([getattr(rank, method).remote(*arguments) for rank in self.ranks], doing, timeout_s)

    async def _gather(self, refs: Sequence[ray.ObjectRef], doing: str, timeout_s: float) -> list[Any]:
        return await _gather(refs, doing, timeout_s)


def _start_rank(
    config: LearnerConfig,
    policy_path: str,
    rank: int,
    total_steps: int,
    seed: int,
    measure_move: bool,
    places: PlacementGroup,
) -> Any:
    environment = {"OMP_NUM_THREADS": str(max(1, int(config.cpus)))}
    if config.gpus == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all GPUs visible to actors that asked for none
    options = {
        "num_cpus": config.cpus,
        "num_gpus": config.gpus,
        "runtime_env": {"env_vars": environment},
        "scheduling_strategy": place_in(places, rank),
    }
    actor = ray.remote(LearnerActor).options(**options)
    return actor.remote(config, policy_path, rank, config.world_size, total_steps, seed, measure_move)


async def _gather(refs: Sequence[ray.ObjectRef], doing: str, timeout_s: float) -> list[Any]:
    """Results of all refs, one of each rank, or a LearnerError that names the rank that failed or is late."""
    if not refs:
        return []
    waiting = [asyncio.wrap_future(ref.future()) for ref in refs]
    done, late = await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
    if late and any(future.exception() for future in done):
        done, late = await asyncio.wait(waiting, timeout=DEATH_NOTICE_S)
    failures = [(i, error) for i, f in enumerate(waiting) if f in done and (error := f.exception()) is not None]
    late_ones = [i for i, future in enumerate(waiting) if future in late]
    for future in late:
        future.cancel()
    if failures:
        # A rank that died takes its neighbours' collectives down; it is the cause, they are the echo.
        index, error = min(failures, key=lambda failure: (not isinstance(failure[1], RayActorError), failure[0]))
        verb = "died" if isinstance(error, RayActorError) else "failed"
        raise LearnerError(f"learner rank {index} {verb} while {doing}: {_reason(error)}") from error
    if late_ones:
        raise LearnerError(f"learner rank {', '.join(map(str, late_ones))} did not finish {doing} in {timeout_s:g} s")
    return [future.result() for future in waiting]


def _reason(error: BaseException) -> str:
    if isinstance(error, RayTaskError):
        cause = error.cause
        return f"{type(cause).__name__}: {cause}"
    text = str(error).strip()
    return text.splitlines()[0] if text and isinstance(error, RayError) else repr(error)
