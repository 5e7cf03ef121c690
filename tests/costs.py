"""What a network costs, on the meta device: multiplications, and what training keeps of an image.

Multiplications are a forward pass's, of one image, half of PyTorch's operations. What training keeps is measured by
autograd's saved tensors, parameters left out and each memory counted once, of a batch of two, halved.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def multiplications(network: nn.Module, *shape: int) -> float:
    """In 1e9 for one image."""
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.empty(1, *shape, device="meta"))
    return float(counter.get_total_flops()) / 2e9


def kept(network: nn.Module, *shape: int) -> float:
    """MiB of one image in training."""
    memory: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            memory[storage._cdata] = storage.nbytes()
            alive.append(storage)  # a freed one's address could be given to another
        return tensor

    alive: list[torch.UntypedStorage] = []
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)  # they keep more for an interpolation, and a training leaves them on
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = network.train()(torch.empty(2, *shape, device="meta"))
    finally:
        torch.use_deterministic_algorithms(before)
    assert output is not None
    return sum(memory.values()) / 2 / 2**20
