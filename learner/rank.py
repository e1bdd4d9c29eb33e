"""One FSDP rank of the learner. Plain Python: no Ray; every method but the constructor and `listen` is collective."""

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from actors.weights.block import Layout, own_room
from actors.weights.offer import Blob, WeightOffer
from actors.weights.transport import Room
from learner import rendezvous
from learner.adapters.layers import Adapter
from learner.checkpoint import Captured, capture, load_checkpoint
from learner.config import START, LearnerConfig
from learner.export import export_directory, file_layout, full_tensors
from learner.guard import Guard
from learner.job import LearnerJob
from learner.losses.objective import Objective
from learner.model.check import check_logprobs
from learner.model.head_move import trained_head
from learner.model.load import load_policy
from learner.model.policy import Policy, trainable_parameters
from learner.model.second_weights import OtherWeights, SecondWeights, WithoutAdapter
from learner.optim.optimizers import Optimizers
from learner.position import Position
from learner.step import Policies, PolicyStep, Updates
from learner.token_values import TokenValues

REFERENCE, AVERAGE = "reference", "average"
"""What the weights of a refreshed reference policy, and of the policy's moving average, are called in a checkpoint."""


class LearnerRank:
    """Policy, optimiser and schedule of one rank. Deterministic: on a CPU, the same calls give the same bits."""

    def __init__(self, config: LearnerConfig, job: LearnerJob, rank: int, world_size: int) -> None:
        self.config = config
        self.job = job
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(config.device)
        self.objective = Objective(config, job.truncated_sampler)
        self.steps_done = 0
        self.position = Position()
        self._store: dist.Store | None = None
        self._captured: Captured | None = None
        self._layout: Layout | None = None

    def listen(self, address: str, timeout_s: float) -> int:
        """Rank 0 only: open the store that the ranks meet at on `address` and return its port."""
        store = rendezvous.listen(address, timeout_s)
        self._store = store
        return int(store.port)

    def setup(self, master_addr: str, master_port: int, timeout_s: float, own_address: str | None = None) -> None:
        """Meet the other ranks, load the policy and try it. A rank that is alone needs no port and opens none.

        timeout_s: how long to wait for the others.    own_address: address of this rank's node, where it differs from rank 0's.
        """
        self.position.note("meeting the other ranks")
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
        self.prepare()

    def prepare(self) -> None:
        """Load the policy and what trains it, in a process group that stands."""
        self.position.note("loading the policy")
        self.policy = self._load(self.job.policy, self.config.trainable)
        self.optimizers = Optimizers(
            self.policy.model,
            trainable_parameters(self.policy),
            self.config.optimizer,
            self.config.schedule,
            self.job.total_steps * self.config.updates_per_batch,
            self.config.memory.offload_optimizer,
        )
        watched = "head_move" in self.objective.needs
        reference = self._reference() if self.config.compares else None
        self.second = self._changing(reference)
        self.policy_step = PolicyStep(
            self.config,
            Policies(self.policy, reference, self.second.get(REFERENCE), self.second.get(AVERAGE)),
            self.optimizers,
            self.objective,
            Guard(self.config, self.rank, self.job.inspect_dir, self.position),
            trained_head(self.policy.model, self.optimizers) if watched else None,
        )

    def step(self, updates: Updates, step: int, keep: Collection[str] = ()) -> dict[str, float]:
        """One policy step: an optimiser step for each entry of `updates`, which holds this rank's groups of it.

        Every rank passes as many updates; each may be empty here. Returns the same floats on every rank: means over all
        tokens of the batch (`loss` is the mean over updates, `grad_norm` and `lr` those of the last one). Updates whose gradient
        is not finite are left out of all but `skipped`. Raises DivergedError after `max_skipped` of them in a row.

        keep: groups, also of other ranks, whose `TokenValues` are to be had from `take_token_values`.
        """
        learned = self.policy_step(updates, step, self.job.measure_move, keep)
        self.steps_done = step + 1
        return learned

    def take_token_values(self) -> list[TokenValues]:
        """Of this rank's part of the groups that the last step was asked to keep; once. Not collective."""
        kept, self.policy_step.kept = self.policy_step.kept, []
        return kept

    def _load(self, path: str, trainable: str | None) -> Policy:
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        entropy_grad = trainable is not None and "entropy" in self.objective.needs
        policy = load_policy(path, self.config, mesh, trainable, entropy_grad, self.job.longest_sample, self.job.seed)
        vocabulary = policy.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        check_logprobs(policy, self.config.dtype, vocabulary, self.device)
        return policy

    def _reference(self) -> OtherWeights:
        """The policy that the KL is taken to, as it is before the first step."""
        kl = self.config.kl
        if kl.reference != START:
            return SecondWeights.taken(self.policy, self._load(kl.reference, None))
        if self.policy.adapter is not None and kl.refresh_every is None:
            return WithoutAdapter(self.policy)
        return SecondWeights.copied(self.policy)

    def _changing(self, reference: OtherWeights | None) -> dict[str, SecondWeights]:
        """Weights beside the policy's that steps change, by what they are called in a checkpoint."""
        changing = {}
        if self.config.kl.refresh_every is not None and isinstance(reference, SecondWeights):
            changing[REFERENCE] = reference
        if self.config.average is not None:
            changing[AVERAGE] = SecondWeights.copied(self.policy)
        return changing

    def export_weights(self, version: int, room: Room = own_room) -> tuple[WeightOffer, Blob] | None:
        """The policy at `version` as an offer without an address, and its bytes: all of it, or its adapter alone; None on every rank but 0.

        room: gives the memory that they are written into.
        """
        self.position.note(f"packing version {version}")
        dtype = getattr(torch, self.job.export_dtype)
        adapter = None if self.config.published_adapter is None else self.policy.adapter
        tensors = full_tensors(self.policy, dtype) if adapter is None else adapter.tensors()
        if self.rank == 0:
            self._layout = self._layout or self._new_layout(adapter, dtype)
            blob = room(self._layout.size)
            offer = self._layout.write(tensors, blob, version)
            return (offer if adapter is None else replace(offer, kind="adapter", base_version=0)), blob
        for _ in tensors:  # the gathers inside are collective
            pass
        return None

    def _new_layout(self, adapter: Adapter | None, dtype: torch.dtype) -> Layout:
        if adapter is None:
            return file_layout(self.policy, dtype)
        return Layout((name, dtype, shape) for name, shape in adapter.shapes())

    def capture(self) -> None:
        """Copy what a checkpoint holds of this rank into host memory, for `write`; then steps may go on."""
        self.position.note("copying a checkpoint into host memory")
        self._captured = capture(self.policy, self.optimizers, self.steps_done, self.second)

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
        self.position.note("reading a checkpoint")
        self.steps_done = load_checkpoint(directory, self.policy, self.optimizers, self.second)
        return self.steps_done

    def export_hf(self, directory: str | Path) -> None:
        """Write the policy as a Hugging Face directory with weights of the job's dtype; rank 0 writes."""
        self.position.note("exporting the policy")
        export_directory(directory, self.policy, self.job.policy, getattr(torch, self.job.export_dtype))

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()
        self._store = None


def set_threads(cpus: float) -> None:
    """Use as many torch threads as CPUs were reserved."""
    torch.set_num_threads(max(1, min(int(cpus), os.cpu_count() or 1)))
