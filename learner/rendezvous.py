"""How the ranks meet: a store on rank 0 that listens on one address only, and a process group over it."""

import os
import socket
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

GRACE_S = 60.0
"""How much longer than the driver a collective waits."""


def listen(address: str, timeout_s: float) -> dist.TCPStore:
    """A store on a free port of `address` and on no other address; `.port` is the port."""
    listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    port = listener.getsockname()[1]
    # The store owns the descriptor from here on.
    return dist.TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener.detach(),
    )


def join(address: str, port: int, timeout_s: float) -> dist.TCPStore:
    """The store that rank 0 listens with."""
    return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))


def interface_of(address: str) -> str | None:
    """Name of the network interface that has this address; None where none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return None


def form_process_group(
    store: dist.Store, own_address: str, rank: int, world_size: int, device: torch.device, timeout_s: float
) -> None:
    """Make the default process group: gloo for CPU tensors, NCCL for those on a GPU.

    own_address: address of this rank's node; collectives use its interface and no other.    timeout_s: how long the driver
    waits; a collective gives up later, so that the rank that it waits for is blamed, and not the one that waits.
    """
    interface = interface_of(own_address)
    if interface is not None:
        # By default gloo takes the interface that the host name resolves to, which is often the wrong one.
        os.environ["GLOO_SOCKET_IFNAME"] = interface
        os.environ["NCCL_SOCKET_IFNAME"] = interface
    dist.init_process_group(
        backend="gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s + GRACE_S),
        device_id=None if device.type == "cpu" else device,
    )
