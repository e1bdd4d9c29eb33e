"""One FSDP rank of the learner. Plain Python: no Ray; every method but the constructor and `listen` is collective."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from actors.weights.block import pack as pack_weights
from actors.weights.offer import Blob, WeightOffer
from learner import rendezvous
from learner.batching.pack import ScoredSamples, Totals, check_group, count, empty_batch, pack
from learner.batching.packed import PackedBatch
from learner.batching.probe import random_share
from learner.checkpoint import Captured, capture, load_checkpoint
from learner.config import LearnerConfig
from learner.errors import DivergedError
from learner.export import export_directory, full_tensors
from learner.job import LearnerJob
from learner.losses.metrics import Tally, move_sums
from learner.losses.objective import Objective
from learner.masks.statistics import with_statistics
from learner.model.check import check_logprobs
from learner.model.head_move import HeadMove, trained_head
from learner.model.load import load_policy
from learner.model.policy import Policy, WithoutAdapter, trainable_parameters
from learner.optim.optimizers import Optimizers, Update
from learner.skipped import keep_batch
from moments_service.seeding import derive_seed

logger = logging.getLogger(__name__)


class LearnerRank:
    """Policy, optimiser and schedule of one rank. Deterministic: on a CPU, the same calls give the same bits."""

    def __init__(self, config: LearnerConfig, job: LearnerJob, rank: int, world_size: int) -> None:
        self.config = config
        self.job = job
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device("cuda", 0) if config.gpus > 0 else torch.device("cpu")
        self.objective = Objective(config, job.truncated_sampler)
        self.steps_done = 0
        self.skipped_in_a_row = 0
        self._store: dist.Store | None = None
        self._captured: Captured | None = None

    def listen(self, address: str, timeout_s: float) -> int:
        """Rank 0 only: open the store that the ranks meet at on `address` and return its port."""
        store = rendezvous.listen(address, timeout_s)
        self._store = store
        return int(store.port)

    def setup(self, master_addr: str, master_port: int, timeout_s: float, own_address: str | None = None) -> None:
        """Meet the other ranks, load the policy and try it. A rank that is alone needs no port and opens none.

        timeout_s: how long to wait for the others.    own_address: address of this rank's node, where it differs from rank 0's.
        """
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self._store is None:
            alone = self.world_size == 1
            self._store = dist.HashStore() if alone else rendezvous.join(master_addr, master_port, timeout_s)
        rendezvous.form_process_group(
            self._store,
            own_address or master_addr,
            self.rank,
            self.world_size,
            self.device,
            self.config.step_timeout_s,
        )
        self.policy = self._load(self.config.trainable)
        self.reference = self._reference() if "reference" in self.objective.needs else None
        self.optimizers = Optimizers(
            self.policy.model,
            trainable_parameters(self.policy),
            self.config.optimizer,
            self.config.schedule,
            self.job.total_steps * self.config.updates_per_batch,
            self.config.memory.offload_optimizer,
        )
        watched = "head_move" in self.objective.needs
        self.head = trained_head(self.policy.model, self.optimizers) if watched else None

    def step(self, updates: Sequence[Sequence[ScoredSamples]], step: int) -> dict[str, float]:
        """One policy step: an optimiser step for each entry of `updates`, which holds this rank's groups of it.

        Every rank passes as many updates; each may be empty here. Returns the same floats on every rank: means over all
        tokens of the batch (`loss` is the mean over updates, `grad_norm` and `lr` those of the last one). Updates whose gradient
        is not finite are left out of all but `skipped`. Raises DivergedError after `max_skipped` of them in a row.
        """
        started = time.perf_counter()
        plans = [self._with_logprobs(plan) for plan in self._plan(updates, step)]
        probe = self._probe(updates, plans, step) if self.job.measure_move else []
        before = self._logprobs(self.policy, probe)
        tally = Tally(self.objective.names)
        lr, grad_norm, done, skipped = self.optimizers.lr, 0.0, 0, 0
        if len(plans) > 1 and "old" in self.objective.needs:
            plans = [
                [
                    replace(batch, old_logprobs=old)
                    for batch, old in zip(plan, self._logprobs(self.policy, plan), strict=True)
                ]
                for plan in plans
            ]
        plans = [with_statistics(plan, self.config.masks) for plan in plans]
        for number, plan in enumerate(plans):
            if not plan:
                continue
            update = self._update(plan, tally)
            lr = update.lr
            if update.skipped:
                skipped += 1
                self._skip(plan, update, step, number)
            else:
                grad_norm, done, self.skipped_in_a_row = update.grad_norm, done + 1, 0
        self.steps_done = step + 1
        seconds = self._over_all_ranks(tally, time.perf_counter() - started)
        return (
            {"loss": float(tally.loss) / max(1, done)}
            | tally.means()
            | self._move(probe, before)
            | {
                "grad_norm": grad_norm,
                "lr": lr,
                "updates": float(done),
                "skipped": float(skipped),
                "microbatches": float(sum(len(plan) for plan in plans)),
                "step_s": seconds,
            }
        )

    def _load(self, trainable: str | None) -> Policy:
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        entropy_grad = trainable is not None and "entropy" in self.objective.needs
        policy = load_policy(
            self.job.policy, self.config, mesh, trainable, entropy_grad, self.job.longest_sample, self.job.seed
        )
        vocabulary = policy.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        check_logprobs(policy, self.config.dtype, vocabulary, self.device)
        return policy

    def _reference(self) -> Policy | WithoutAdapter:
        return self._load(None) if self.policy.adapter is None else WithoutAdapter(self.policy)

    def _plan(self, updates: Sequence[Sequence[ScoredSamples]], step: int) -> list[list[PackedBatch]]:
        """Microbatches of each update, as many on every rank; none at all where no rank has anything to train on."""
        config = self.config
        for samples, advantages in (group for groups in updates for group in groups):
            check_group(samples, advantages)
        here = [count(groups) for groups in updates]
        totals = torch.tensor([[each.groups, each.samples, each.tokens] for each in here], dtype=torch.int64)
        dist.all_reduce(totals)
        plans = [
            pack(
                groups,
                config.aggregation,
                Totals(*total),
                step,
                self.policy.share_prompt,
                config.microbatch_tokens,
                self.policy.padded,
            )
            for groups, total in zip(updates, totals.tolist(), strict=True)
        ]
        passes = torch.tensor([len(plan) for plan in plans])
        dist.all_reduce(passes, op=dist.ReduceOp.MAX)
        for plan, most in zip(plans, passes.tolist(), strict=True):
            # Forward and backward are collective under FSDP, so a rank with fewer rows runs empty ones.
            plan.extend(empty_batch() for _ in range(most - len(plan)))
        return plans

    @torch.no_grad()
    def _logprobs(self, policy: Policy | WithoutAdapter, plan: Sequence[PackedBatch]) -> list[torch.Tensor]:
        return [policy(batch.to(self.device))[0] for batch in plan]

    def _with_logprobs(self, plan: list[PackedBatch]) -> list[PackedBatch]:
        """The microbatches with log-probs of the reference policy, where there is one."""
        if self.reference is None:
            return plan
        found = self._logprobs(self.reference, plan)
        return [replace(batch, reference_logprobs=logprobs) for batch, logprobs in zip(plan, found, strict=True)]

    def _update(self, plan: Sequence[PackedBatch], tally: Tally) -> Update:
        """Gradients of one update, and the step that they make; counted in the tally unless it was skipped."""
        losses, parts, masks = [], [], []
        self.policy.head_move = head_move = self._head_move()
        for cpu_batch in plan:
            batch = cpu_batch.to(self.device)
            logprobs, entropy = self.policy(batch)
            moved = None if head_move is None else head_move.found
            loss, measured = self.objective(batch, logprobs, entropy, moved)
            loss.backward()
            losses.append(loss.detach())
            parts.append(measured)
            masks.append(batch.mask)
        self.policy.head_move = None
        if self.policy.adapter is not None:
            # On every rank the same: counted once where the ranks' losses are added up.
            losses.append(torch.as_tensor(self.policy.adapter.add_penalty() / self.world_size).to(losses[0]))
        update = self.optimizers.step()
        if not update.skipped:
            tally.add(losses, parts, masks)
        return update

    def _head_move(self) -> HeadMove | None:
        """What looks at the head's hidden states during an update, where a mask asks and the head has been stepped before."""
        step = None if self.head is None else self.optimizers.planned_step(self.head)
        return None if step is None else HeadMove(step, self.config.memory.logit_elements)

    def _skip(self, plan: Sequence[PackedBatch], update: Update, step: int, number: int) -> None:
        """Keep a batch whose gradient is not finite. Raises DivergedError where there were too many in a row."""
        self.skipped_in_a_row += 1
        kept = None
        if self.job.inspect_dir is not None:
            name = f"step-{step:06d}-update-{number}-rank-{self.rank}"
            about = {
                "step": step,
                "update": number,
                "rank": self.rank,
                "gradient_norm": str(update.grad_norm),
                "lr": update.lr,
                "config": self.config.model_dump(mode="json"),
            }
            kept = keep_batch(Path(self.job.inspect_dir) / f"rank-{self.rank}", name, plan, about)
        message = f"the gradient's norm is {update.grad_norm} at step {step}, update {number}"
        logger.warning("%s: skipped%s", message, f"; its batch is in {kept}" if kept else "")
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise DivergedError(
                f"{message}, as it was in the {self.skipped_in_a_row - 1} updates before (learner.max_skipped): the policy has "
                "diverged; go back to a checkpoint with a lower learner.optimizer.lr"
            )

    def _over_all_ranks(self, tally: Tally, seconds: float) -> float:
        """Reduce a tally over all ranks, in place; returns the seconds of the slowest."""
        sums = torch.cat([tally.loss[None], tally.sums])
        dist.all_reduce(sums)
        maxima = torch.cat([tally.maxima, torch.tensor([seconds], dtype=torch.float64)])
        dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
        tally.loss, tally.sums, tally.maxima = sums[0], sums[1:], maxima[:-1]
        return float(maxima[-1])

    def _probe(
        self, updates: Sequence[Sequence[ScoredSamples]], plans: Sequence[Sequence[PackedBatch]], step: int
    ) -> list[PackedBatch]:
        """A random share of this rank's part of the first update, one microbatch; none where no rank has anything to train on."""
        config = self.config
        groups, plan = next(((groups, plan) for groups, plan in zip(updates, plans, strict=True) if plan), ((), ()))
        if not plan:
            return []
        seed = derive_seed(step, "move", self.rank)
        share = random_share(
            groups,
            len(plan),
            config.aggregation,
            step,
            self.policy.share_prompt,
            config.microbatch_tokens,
            seed,
            self.policy.padded,
        )
        return [share or empty_batch()]

    def _move(self, probe: Sequence[PackedBatch], before: Sequence[torch.Tensor]) -> dict[str, float]:
        """How far the step moved the policy on the tokens of `probe`, over all ranks; nothing where none was taken."""
        if not probe:
            return {}
        sums = torch.zeros(3, dtype=torch.float64)
        for batch, old, new in zip(probe, before, self._logprobs(self.policy, probe), strict=True):
            sums += move_sums(old.cpu(), new.cpu(), batch.mask)
        dist.all_reduce(sums)
        kl, log_ratio, tokens = sums.tolist()
        return {"move_kl": kl / max(tokens, 1.0), "move_log_ratio": log_ratio / max(tokens, 1.0)}

    def export_weights(self, version: int) -> tuple[WeightOffer, Blob] | None:
        """The whole policy at `version` as an offer without an address, and its bytes; None on every rank but 0."""
        tensors = full_tensors(self.policy, getattr(torch, self.job.export_dtype))
        if self.rank == 0:
            return pack_weights(tensors, version)
        for _ in tensors:  # nothing is yielded here, but the gathers inside are collective
            pass
        return None

    def capture(self) -> None:
        """Copy what a checkpoint holds of this rank into host memory, for `write`; then steps may go on."""
        self._captured = capture(self.policy, self.optimizers, self.steps_done)

    def write(self, directory: str | Path) -> None:
        """Write what was captured last into a directory that all ranks see; the caller renames it when all have returned.

        Not collective; meant for another thread than the one that steps. The copy is dropped, also after an error.
        """
        captured, self._captured = self._captured, None
        if captured is None:
            raise RuntimeError("nothing was captured that could be written")
        captured.write(directory)

    def save(self, directory: str | Path) -> None:
        """Write a checkpoint and wait for it."""
        self.capture()
        self.write(directory)

    def load(self, directory: str | Path) -> int:
        """Read a checkpoint that any world size wrote; returns the number of policy steps it had done."""
        self.steps_done = load_checkpoint(directory, self.policy, self.optimizers)
        return self.steps_done

    def export_hf(self, directory: str | Path) -> None:
        """Write the policy as a Hugging Face directory with weights of the job's dtype; rank 0 writes."""
        export_directory(directory, self.policy, self.job.policy, getattr(torch, self.job.export_dtype))

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()
        self._store = None


def set_threads(cpus: float) -> None:
    """Use as many torch threads as CPUs were reserved."""
    torch.set_num_threads(max(1, min(int(cpus), os.cpu_count() or 1)))
