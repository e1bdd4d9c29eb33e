"""Other weights of the same policy: it computes with them for a while, so that no second module, and no second gather, is held."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch.distributed.tensor import DTensor

from learner.model.policy import Policy, named_tensors, reshard, trainable_parameters


class OtherWeights(Protocol):
    """Weights that a policy can have for a while."""

    def in_place(self) -> AbstractContextManager[Policy]:
        """The policy with these weights, for forward passes without gradients; afterwards it has its own again, bit for bit."""
        ...


class WithoutAdapter:
    """The policy as it was before its adapter; takes no memory."""

    def __init__(self, policy: Policy) -> None:
        if policy.adapter is None:
            raise ValueError("a policy without an adapter has no other to be compared with")
        self.policy, self.adapter = policy, policy.adapter

    @contextmanager
    def in_place(self) -> Iterator[Policy]:
        """See `OtherWeights`."""
        with self.adapter.disabled():
            yield self.policy


class SecondWeights:
    """Other values of some of a policy's tensors, sharded as those are: as many bytes over all ranks as the tensors have."""

    def __init__(
        self, policy: Policy, own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], adapted: bool
    ) -> None:
        """own: tensors of the policy by name.    tensors: their other values, taken over, not copied.

        adapted: whether the other weights are those of a policy with this one's adapter, where it has one.
        """
        self.policy = policy
        self.tensors = dict(tensors)
        """The other values by name; what a checkpoint holds of them."""
        self._own = {name: own[name] for name in tensors}
        self._adapted = adapted

    @classmethod
    def copied(cls, policy: Policy) -> "SecondWeights":
        """The policy as it is now: a copy of what is trained, since nothing else changes."""
        reshard(policy)
        trained = trainable_parameters(policy) if policy.adapter is None else policy.adapter.parameters()
        return cls(policy, trained, {name: tensor.detach().clone() for name, tensor in trained.items()}, adapted=True)

    @classmethod
    def taken(cls, policy: Policy, other: Policy) -> "SecondWeights":
        """All of another policy of the same architecture on the same ranks, without an adapter; `other` is of no use afterwards."""
        values = {name: tensor.detach() for name, tensor in named_tensors(other)}
        return cls(policy, dict(named_tensors(policy)), values, adapted=False)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[Policy]:
        """See `OtherWeights`. One exchange each way, so once around all microbatches, not around each."""
        adapter = None if self._adapted else self.policy.adapter
        with nullcontext() if adapter is None else adapter.disabled():
            self._exchange()
            try:
                yield self.policy
            finally:
                self._exchange()

    def refresh(self) -> None:
        """Become the policy's own weights of now."""
        self.move_towards(1.0)

    @torch.no_grad()
    def move_towards(self, share: float) -> None:
        """Go this share of the way to the policy's own weights of now; 1 goes it exactly, in float32 the rest to its last bit."""
        for name, tensor in self.tensors.items():
            here, there = _local(tensor), _local(self._own[name])
            if share == 1.0:
                here.copy_(there)
            else:
                here.lerp_(there, share)

    def _exchange(self) -> None:
        reshard(self.policy)
        for name, tensor in self.tensors.items():
            here, there = _local(tensor), _local(self._own[name])
            held = there.clone()
            there.copy_(here)
            here.copy_(held)
        # A gathered copy of either weights must not outlive them.
        reshard(self.policy)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
