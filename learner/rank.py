"""One FSDP rank of the learner. Plain Python: no Ray; every method but the constructor and `listen` is collective."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from actors.weights.object_store import Blob, pack
from actors.weights.offer import WeightOffer
from learner import rendezvous
from learner.batching.microbatch import Microbatch, TrainGroup, empty_microbatch, make_rows, pack_rows
from learner.checkpoint import load_checkpoint, save_checkpoint
from learner.config import LearnerConfig
from learner.export import export_directory, full_tensors
from learner.losses.metrics import MAXIMA, SUMS, move_sums, token_means, token_metrics
from learner.losses.ppo_clip import policy_loss
from learner.model.policy import Policy, load_policy, shard, trainable_parameters
from learner.optim.optimizer import Optimizer
from moments_service.seeding import derive_seed


class LearnerRank:
    """Policy, optimiser and schedule of one rank. Deterministic: on a CPU, the same calls give the same bits."""

    def __init__(
        self,
        config: LearnerConfig,
        policy_path: str,
        rank: int,
        world_size: int,
        total_steps: int,
        seed: int,
        measure_move: bool = False,
    ) -> None:
        """total_steps: policy steps of the whole run; the schedule spans `total_steps * updates_per_batch`.

        measure_move: measure how far every step moved the policy, by two more forward passes of one microbatch.
        """
        self.config = config
        self.policy_path = policy_path
        self.rank = rank
        self.world_size = world_size
        self.total_steps = total_steps
        self.seed = seed
        self.measure_move = measure_move
        self.device = torch.device("cuda", 0) if config.gpus > 0 else torch.device("cpu")
        self.steps_done = 0
        self._store: dist.Store | None = None

    def listen(self, address: str, timeout_s: float) -> int:
        """Rank 0 only: open the store that the ranks meet at on `address` and return its port."""
        store = rendezvous.listen(address, timeout_s)
        self._store = store
        return int(store.port)

    def setup(self, master_addr: str, master_port: int, timeout_s: float, own_address: str | None = None) -> None:
        """Meet the other ranks, load the policy and shard it. A rank that is alone needs no port and opens none.

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
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        config = self.config
        self.policy = shard(load_policy(self.policy_path, config, config.trainable), config, mesh)
        self.reference: Policy | None = None
        if config.loss.kl_coef > 0:
            self.reference = shard(load_policy(self.policy_path, config), config, mesh)
        self.optimizer = Optimizer(
            trainable_parameters(self.policy).values(), self.total_steps * config.updates_per_batch, config.optimizer
        )

    def step(self, updates: Sequence[Sequence[TrainGroup]], step: int) -> dict[str, float]:
        """One policy step: an optimiser step for each entry of `updates`, which holds this rank's groups of it.

        Every rank passes as many updates; each may be empty here. Returns the same floats on every rank: means over all
        tokens of the batch (`loss` is the mean over updates, `grad_norm` and `lr` those of the last one).
        """
        started = time.perf_counter()
        torch.manual_seed(derive_seed(self.seed, "learner", step))
        plans = self._plan(updates)
        # With one update the behaviour policy of the loss is the policy itself: its log-probs need no extra pass.
        old = [self._logprobs(self.policy, plan) for plan in plans] if len(plans) > 1 else None
        probe = next((plan[:1] for plan in plans if plan), []) if self.measure_move else []
        before = self._logprobs(self.policy, probe)
        sums, maxima = torch.zeros(len(SUMS), dtype=torch.float64), torch.zeros(len(MAXIMA), dtype=torch.float64)
        grad_norm, lr, done = 0.0, self.optimizer.lr, 0
        for i, plan in enumerate(plans):
            if not plan:
                continue
            lr = self.optimizer.lr
            update_sums, update_maxima = self._backward(plan, None if old is None else old[i])
            grad_norm = self.optimizer.step()
            sums, maxima, done = sums + update_sums, torch.maximum(maxima, update_maxima), done + 1
        self.steps_done = step + 1
        dist.all_reduce(sums)
        sums[SUMS.index("loss")] /= max(1, done)
        timing = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
        maxima = torch.cat([maxima, timing])
        dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
        return (
            token_means(sums, maxima[:-1])
            | self._move(probe, before)
            | {
                "grad_norm": grad_norm,
                "lr": lr,
                "updates": float(done),
                "microbatches": float(sum(len(plan) for plan in plans)),
                "step_s": float(maxima[-1]),
            }
        )

    def _plan(self, updates: Sequence[Sequence[TrainGroup]]) -> list[list[Microbatch]]:
        """Microbatches of each update, as many on every rank; none at all where no rank has anything to train on."""
        config = self.config
        prompts = torch.tensor([sum(1 for group in groups if group.trained) for groups in updates])
        dist.all_reduce(prompts)
        plans = []
        for groups, count in zip(updates, prompts.tolist(), strict=True):
            rows = [
                row
                for group in groups
                for row in make_rows(group, count, config.share_prompt, config.microbatch_tokens)
            ]
            plans.append(pack_rows(rows, config.microbatch_tokens, config.share_prompt))
        passes = torch.tensor([len(plan) for plan in plans])
        dist.all_reduce(passes, op=dist.ReduceOp.MAX)
        for plan, count in zip(plans, passes.tolist(), strict=True):
            # Forward and backward are collective under FSDP, so a rank with fewer rows runs empty ones.
            plan.extend(empty_microbatch(config.share_prompt) for _ in range(count - len(plan)))
        return plans

    @torch.no_grad()
    def _logprobs(self, policy: Policy, plan: Sequence[Microbatch]) -> list[torch.Tensor]:
        return [policy(batch.to(self.device))[0] for batch in plan]

    def _backward(
        self, plan: Sequence[Microbatch], old: Sequence[torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Accumulate the gradients of one update; returns this rank's metric sums and maxima."""
        sums, maxima = [], []
        for i, cpu_batch in enumerate(plan):
            batch = cpu_batch.to(self.device)
            reference = None if self.reference is None else self._logprobs(self.reference, [batch])[0]
            logprobs, entropy = self.policy(batch)
            behaviour = logprobs.detach() if old is None else old[i]
            loss = policy_loss(
                logprobs, entropy, behaviour, reference, batch.advantages, batch.weights, self.config.loss
            )
            loss.backward()
            token_sums, token_maxima = token_metrics(
                logprobs.detach(),
                entropy.detach(),
                behaviour,
                reference,
                batch.rollout_logprobs,
                batch.advantages,
                batch.weights,
                self.config.loss,
            )
            sums.append(torch.cat([loss.detach().double()[None], token_sums]))
            maxima.append(token_maxima)
        return torch.stack(sums).sum(dim=0).cpu(), torch.stack(maxima).amax(dim=0).cpu()

    def _move(self, probe: Sequence[Microbatch], before: Sequence[torch.Tensor]) -> dict[str, float]:
        """How far the step moved the policy on the tokens of `probe`, over all ranks; nothing where none was taken."""
        if not probe:
            return {}
        sums = torch.zeros(3, dtype=torch.float64)
        for batch, old, new in zip(probe, before, self._logprobs(self.policy, probe), strict=True):
            sums += move_sums(old.cpu(), new.cpu(), batch.weights)
        dist.all_reduce(sums)
        kl, log_ratio, tokens = sums.tolist()
        return {"move_kl": kl / max(tokens, 1.0), "move_log_ratio": log_ratio / max(tokens, 1.0)}

    def export_weights(self, version: int, dtype: str) -> tuple[WeightOffer, Blob] | None:
        """The whole policy at `version` as `dtype` (a torch name such as "bfloat16"), see `pack`; None on every rank but 0."""
        tensors = full_tensors(self.policy, getattr(torch, dtype))
        if self.rank == 0:
            return pack(tensors, version)
        for _ in tensors:  # nothing is yielded here, but the gathers inside are collective
            pass
        return None

    def save(self, directory: str | Path) -> None:
        """Write a checkpoint into a directory that all ranks see; the caller renames it when all have returned."""
        save_checkpoint(directory, self.policy, self.optimizer, self.steps_done)

    def load(self, directory: str | Path) -> int:
        """Read a checkpoint that any world size wrote; returns the number of policy steps it had done.

        There is no generator state to restore: every step seeds its own from (seed, step).
        """
        self.steps_done = load_checkpoint(directory, self.policy, self.optimizer)
        return self.steps_done

    def export_hf(self, directory: str | Path, dtype: str) -> None:
        """Write the policy as a Hugging Face directory with weights of `dtype`; rank 0 writes."""
        export_directory(directory, self.policy, self.policy_path, getattr(torch, dtype))

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()
        self._store = None


def set_threads(cpus: float) -> None:
    """Use as many torch threads as CPUs were reserved."""
    torch.set_num_threads(max(1, min(int(cpus), os.cpu_count() or 1)))
