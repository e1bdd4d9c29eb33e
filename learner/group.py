"""The driver's handle on all learner ranks: starts them, steps them, offers their weights, ends them."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from actors.placement import Part, bundle, give_back, place_in, reserve
from actors.weights.offer import WeightOffer
from learner.actor import LearnerActor
from learner.batching.split import masked_share, split_batch, without_truncated
from learner.blame import Whereabouts, holding_up, is_echo
from learner.config import LearnerConfig
from learner.errors import PayloadLostError, RankDiedError, RankFailedError, RankLateError
from learner.job import LearnerJob
from learner.token_values import TokenValues
from moments_service.messages.batch import Batch

DEATH_NOTICE_S = 5.0
"""After one rank's error, how long the others get to report, so that a dead rank is blamed before its neighbours."""

LOOPBACK = "127.0.0.1"
_WRITING = "writing"
"""The concurrency group of a rank's calls that write what was captured."""
_ASKING = "asking"
"""That of calls that a rank answers also while it hangs."""
ANSWER_S = 5.0
"""How long a late rank gets to say where it is."""

Ask = Callable[[int], ray.ObjectRef]
"""Asks the rank of a number where it is."""


def learner_part(config: LearnerConfig) -> Part:
    """What the learner ranks ask of the cluster."""
    each = bundle(config.cpus, config.gpus)
    return Part("learner rank", "learner", config.world_size, each, config.placement)


class LearnerGroup:
    """Async handle on `world_size` ranks in one placement group. One call at a time, but for `write`; after a LearnerError only `close`.

    Consumes: batches of the moments service, whose payloads only the ranks open. Waits for: the ranks, each time with a
    deadline. Ends: by `close`, or with the driver. A `WeightSource`: it offers weights and delivers none.
    """

    def __init__(self, config: LearnerConfig, places: PlacementGroup, ranks: list[Any]) -> None:
        self.config = config
        self.places = places
        self.ranks = ranks
        self.offers_elsewhere = False
        """Whether any engine that takes the weights is on another node than rank 0."""

    @classmethod
    async def start(cls, config: LearnerConfig, job: LearnerJob, start_timeout_s: float) -> "LearnerGroup":
        """Reserve resources, start the ranks, load and shard the policy.

        Raises NoRoomError where no nodes hold the ranks in `start_timeout_s`, LearnerError past it for any other part, or
        when a rank fails.
        """
        group = cls(config, await reserve(learner_part(config), start_timeout_s), [])
        try:
            group.ranks = [_start_rank(config, job, rank, group.places) for rank in range(config.world_size)]
            await group._meet(start_timeout_s)
        except BaseException:
            await group.close()
            raise
        return group

    async def _meet(self, timeout_s: float) -> None:
        """Form the process group. Ranks that share a node meet on its loopback, where nobody else can reach them."""
        key = "start_timeout_s"
        nodes = await _gather([rank.node_address.remote() for rank in self.ranks], "starting", timeout_s, key)
        own = [LOOPBACK] * len(nodes) if len(set(nodes)) == 1 else nodes
        port = 0
        if len(own) > 1:
            listening = [self.ranks[0].listen.remote(own[0], timeout_s)]
            (port,) = await _gather(listening, "opening the rendezvous", timeout_s, key)
        setups = [
            rank.setup.remote(own[0], port, timeout_s, address) for rank, address in zip(self.ranks, own, strict=True)
        ]
        await _gather(setups, "meeting and loading the policy", timeout_s, key, self._ask)

    async def step(self, batch: Batch, keep: frozenset[str] = frozenset()) -> dict[str, float]:
        """Train on a batch; returns metrics as floats, see `LearnerRank.step`, plus `open_s`, and `masked_truncated` where
        `mask_truncated` is set.

        keep: groups whose tokens' values `take_token_values` gives after it. Raises PayloadLostError before anything was trained when payloads died with their actors; LearnerError otherwise.
        """
        started = time.perf_counter()
        masked = {}
        if self.config.mask_truncated:
            masked = {"masked_truncated": masked_share(batch)}
            batch = without_truncated(batch)
        plan = split_batch(batch, self.config.updates_per_batch, self.config.world_size, self.config.share_prompt)
        sizes = batch.table.sizes.tolist()
        timeout_s = self.config.step_timeout_s
        opening = [
            rank.open.remote(
                [
                    [(batch.group_ids[row], batch.payloads[row], batch.advantages[row, : sizes[row]]) for row in rows]
                    for rows in updates
                ]
            )
            for rank, updates in zip(self.ranks, plan, strict=True)
        ]
        lost = await _gather(opening, f"opening the payloads of step {batch.step}", timeout_s)
        if any(lost):
            raise PayloadLostError(tuple(group_id for ids in lost for group_id in ids))
        open_s = time.perf_counter() - started
        metrics = await self._all("step", f"step {batch.step}", timeout_s, batch.step, keep)
        return metrics[0] | {"open_s": open_s} | masked

    async def take_token_values(self) -> list[TokenValues]:
        """Of the groups that the last step was asked to keep, as far as they were trained on; once."""
        kept = await self._all("take_token_values", "handing over token values", self.config.step_timeout_s)
        return [values for of_rank in kept for values in of_rank]

    async def offer(self, version: int) -> WeightOffer:
        """The policy as it is now, as `version`, whole when this returns.

        The job's transport keeps its bytes on rank 0's node until the next version has settled.
        """
        exports = [
            rank.export_weights.options(num_returns=3).remote(version, self.offers_elsewhere) for rank in self.ranks
        ]
        doing = f"packing version {version}"
        await _gather([seconds for _, _, seconds in exports], doing, self.config.step_timeout_s, ask=self._ask)
        (offer,) = await _gather([exports[0][1]], doing, self.config.step_timeout_s)
        return replace(offer, address=exports[0][0])

    async def capture(self) -> None:
        """Have every rank copy its part of a checkpoint into host memory. When this returns, steps may go on."""
        await self._all("capture", "copying a checkpoint into host memory", self.config.step_timeout_s)

    async def write(self, directory: str) -> None:
        """Write what was captured into `directory`, on a file system that all ranks see. Other calls may be made meanwhile."""
        writing = [rank.write.options(concurrency_group=_WRITING).remote(directory) for rank in self.ranks]
        await _gather(writing, f"writing {directory}", self.config.step_timeout_s)

    async def save(self, directory: str) -> None:
        """Write a checkpoint and wait for it."""
        await self.capture()
        await self.write(directory)

    async def load(self, directory: str) -> int:
        """Read a checkpoint, written by any world size; returns how many policy steps it had done."""
        done = await self._all("load", f"loading {directory}", self.config.step_timeout_s, directory)
        return int(done[0])

    async def export_hf(self, directory: str) -> None:
        """Write a Hugging Face directory (config, tokenizer files, weights in the job's dtype) on rank 0's node."""
        await self._all("export_hf", f"exporting to {directory}", self.config.step_timeout_s, directory)

    async def close(self) -> None:
        """End the ranks and give their resources back. Safe to call twice and after errors."""
        for rank in self.ranks:
            ray.kill(rank, no_restart=True)
        self.ranks = []
        await give_back(self.places)

    async def _all(self, method: str, doing: str, timeout_s: float, *arguments: Any) -> list[Any]:
        calls = [getattr(rank, method).remote(*arguments) for rank in self.ranks]
        return await _gather(calls, doing, timeout_s, ask=self._ask)

    def _ask(self, rank: int) -> ray.ObjectRef:
        where: ray.ObjectRef = self.ranks[rank].where.options(concurrency_group=_ASKING).remote()
        return where


def _start_rank(config: LearnerConfig, job: LearnerJob, rank: int, places: PlacementGroup) -> Any:
    environment = {"OMP_NUM_THREADS": str(max(1, int(config.cpus)))}
    if config.gpus == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all GPUs visible to actors that asked for none
    options = {
        "num_cpus": config.cpus,
        "num_gpus": config.gpus,
        "runtime_env": {"env_vars": environment},
        "scheduling_strategy": place_in(places, rank),
    }
    actor: Any = ray.remote(concurrency_groups={_WRITING: 1, _ASKING: 1})  # type: ignore[call-overload]
    return actor(LearnerActor).options(**options).remote(config, job, rank)


async def _gather(
    refs: Sequence[ray.ObjectRef],
    doing: str,
    timeout_s: float,
    key: str = "learner.step_timeout_s",
    ask: Ask | None = None,
) -> list[Any]:
    """Results of all refs, one of each rank, or a LearnerError that names the rank that failed or is late.

    key: where `timeout_s` stands in the config.    ask: where the call is collective, so that one late rank makes the others late.
    """
    if not refs:
        return []
    waiting = [asyncio.wrap_future(ref.future()) for ref in refs]
    try:
        done, late = await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        if late and any(future.exception() for future in done):
            done, late = await asyncio.wait(waiting, timeout=DEATH_NOTICE_S)
    except asyncio.CancelledError:
        for future in waiting:  # nobody is left to hear that the ranks were ended
            future.cancel()
        raise
    failures = [(i, error) for i, f in enumerate(waiting) if f in done and (error := f.exception()) is not None]
    late_ones = [i for i, future in enumerate(waiting) if future in late]
    for future in late:
        future.cancel()
    if failures:
        index, error = min(failures, key=lambda failure: (_blame(failure[1]), failure[0]))
        if isinstance(error, RayActorError):
            raise RankDiedError((index,), f"died while {doing}: {_reason(error)}") from error
        if not (late_ones and is_echo(_reason(error))):
            raise RankFailedError((index,), f"failed while {doing}: {_reason(error)}") from error
        raise await _late(late_ones, f"is gone while {doing} (rank {index}: {_reason(error)})", ask) from error
    if late_ones:
        raise await _late(late_ones, f"did not finish {doing} in {timeout_s:g} s ({key})", ask)
    return [future.result() for future in waiting]


def _blame(error: BaseException) -> int:
    """Least for what is a cause: a rank that died or failed takes its neighbours' collectives down, whose errors are the echo."""
    return 0 if isinstance(error, RayActorError) else 2 if is_echo(_reason(error)) else 1


async def _late(ranks: Sequence[int], what: str, ask: Ask | None) -> RankLateError:
    """What to raise for ranks that are late: it names those that the others wait for."""
    if ask is None:
        return RankLateError(tuple(ranks), what)
    answers = await _answers(ranks, ask)
    behind = holding_up(answers)
    said = {answer for rank in behind if (answer := answers[rank]) is not None}
    others = sorted(set(ranks) - set(behind))
    waiting = f", and rank {', '.join(map(str, others))} waits for it" if others else ""
    where = f"; it is in {'; '.join(sorted(map(str, said)))}" if said else "; it does not answer"
    return RankLateError(behind, f"{what}{waiting}{where}")


async def _answers(ranks: Sequence[int], ask: Ask) -> Mapping[int, Whereabouts | None]:
    """Where each of them is; None for one that does not say so in ANSWER_S."""
    asked = {rank: asyncio.wrap_future(ask(rank).future()) for rank in ranks}
    await asyncio.wait(asked.values(), timeout=ANSWER_S)
    found: dict[int, Whereabouts | None] = {}
    for rank, future in asked.items():
        answered = future.done() and future.exception() is None
        found[rank] = future.result() if answered else None
        future.cancel()
    return found


def _reason(error: BaseException) -> str:
    if isinstance(error, RayTaskError):
        cause = error.cause
        return f"{type(cause).__name__}: {cause}"
    text = str(error).strip()
    return text.splitlines()[0] if text and isinstance(error, RayError) else repr(error)
