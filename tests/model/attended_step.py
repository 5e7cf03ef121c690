"""One step of a dual-sampling network over volumes of which few have an attended infection, by one process or two."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from chestflow.data.packs import Pack
from chestflow.methods import registry
from chestflow.methods.registry import InputSpec
from chestflow.training import distributed
from chestflow.training.loader import Reader
from chestflow.training.phases import apply_freezing
from chestflow.training.steps import Course, Stepper, micro_size, shares
from tests import toy

SHAPE = (16, 48, 48)
#: Two COVID-19 volumes among seven, and a third whose mask is empty, a fourth that has none.
COVID, EMPTY, UNKNOWN = (0, 1, 4, 6), 4, 6
#: A gentle alpha, so that the attention's gradient is no smaller than the classification's.
CONFIG = {"depth": 10, "width": 4, "alpha": 5.0, "lam": 2.0, "batch_size": 7}


def pack_and_table() -> tuple[Pack, pd.DataFrame]:
    pack, _ = toy.make_pack(7, SHAPE)
    pack.masks[:, 4:9, 14:24, 6:14] |= 2
    pack.masks[EMPTY] &= 1
    pack.index.loc[UNKNOWN, "has_infection"] = False
    target = np.isin(np.arange(7), COVID).astype(int)
    return pack, pd.DataFrame({"row": range(7), "target": target, "ratio": 0.01})


def step(accumulate: int, **changes: object) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and logged means of a step whose batch norm is in eval mode, in this process's world."""
    torch.set_num_threads(1)
    method = registry.get("dual_sampling")
    config = registry.configure(method, {**CONFIG, "accumulate": accumulate, **changes})
    torch.manual_seed(0)
    network = method.build(config, InputSpec("ct_volume", SHAPE, ("cap", "covid19")))
    with torch.no_grad():
        network.head.fc.weight.abs_()  # no map is dead
    (phase,) = method.phases(config)
    parameters = apply_freezing(network, phase)
    network.eval()
    pack, table = pack_and_table()
    world = distributed.enter("cpu")
    device = torch.device("cpu")
    optimiser = torch.optim.SGD(parameters, lr=1e-3)
    model: nn.Module = world.wrap(network, device)
    stepper = Stepper(phase, model, parameters, optimiser, Reader(pack, table, device), device, False, world, 0)
    course = Course()
    assert list(stepper.epoch(course, [range(7)])) == [7]
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return gradients, {name: value / course.samples for name, value in course.sums.items()}


def attended_in_each(accumulate: int, rank: int, size: int) -> list[int]:
    """How many volumes count for the attention loss in each micro-batch of a process."""
    phase = registry.get("dual_sampling").phases(registry.configure(
        registry.get("dual_sampling"), {**CONFIG, "accumulate": accumulate}
    ))[0]  # fmt: skip
    dealt = shares(range(7), micro_size(phase), distributed.World(rank, size))
    return [sum(i in COVID and i not in (EMPTY, UNKNOWN) for i in chunk) for chunk, _ in dealt]


def one_of_two(folder: Path, accumulate: int, rank: int, port: int) -> None:
    """A process of two; the first writes what :func:`step` gives."""
    where = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in where.items()})
    gradients, logged = step(accumulate)
    if rank == 0:
        save_file(gradients, folder / "gradients.safetensors")
        save_file({n: torch.tensor(v, dtype=torch.float64) for n, v in logged.items()}, folder / "logged.safetensors")
    distributed.leave()
