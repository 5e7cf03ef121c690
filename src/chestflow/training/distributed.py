"""Several processes, started by torchrun: each takes its share of every batch, gradients are averaged by DDP.

A step is the same as one process would make of the same batch, as long as the loss is a mean over samples and nothing
mixes them. Batch norm does: on GPUs it is synchronised, on CPUs each process normalises its own share and the first
one's running statistics count.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Replica(DistributedDataParallel):
    """DDP through which the network's own attributes stay in reach of its loss."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


@dataclass(frozen=True)
class World:
    """This process's place among all."""

    rank: int = 0
    size: int = 1

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network as its loss calls it; it must be frozen as the phase wants before."""
        if self.size == 1:
            return network
        ids = [device.index or 0] if device.type == "cuda" else None
        return Replica(network, device_ids=ids, broadcast_buffers=False)

    def total(self, values: Tensor) -> Tensor:
        """Sum over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def share_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's batch-norm statistics."""
        for buffer in network.buffers() if self.size > 1 else ():
            dist.broadcast(buffer, 0)

    def collect(self, mine: list[Any]) -> list[Any]:
        """Join lists that were dealt out in turn (``items[rank::size]``), in their first order, on every process."""
        if self.size == 1:
            return mine
        dealt: list[Any] = [None] * self.size
        dist.all_gather_object(dealt, mine)
        return [dealt[i % self.size][i // self.size] for i in range(sum(map(len, dealt)))]


def enter(device_type: str) -> World:
    """Join the processes that torchrun started; alone without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    return World(int(os.environ.get("RANK", "0")), size) if size > 1 else World()


def leave() -> None:
    """Wait for the others and part; nothing where there are none."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def without_sync(network: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Hold gradients back until the ``last`` micro-batch of a step."""
    return nullcontext() if last or not isinstance(network, Replica) else network.no_sync()
