"""Running a trained network over rows of a pack: logits, embeddings and attention maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from weakref import WeakSet

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from chestflow.imaging.cam import grad_cam, min_max
from chestflow.nn.output import Output, class_logits
from chestflow.training.distributed import World
from chestflow.training.hardware import autocast
from chestflow.training.loader import PackLike, Reader
from chestflow.training.phases import Batch, respond

#: Voxels of the volumes that one forward pass with gradients takes at most (one volume is taken in any case), since
#: what autograd keeps grows with them. A volume of paper 004 has 9.0 million.
VOXELS = 2**24
#: Networks that were seen to give no map of their own, so that the pass without gradients need not be tried again.
_without_map: WeakSet[nn.Module] = WeakSet()
_Part = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float16] | None]


@dataclass(frozen=True)
class Inferred:
    """What a network says about N samples, in the order they were asked for.

    Attributes:
        logits: (N, C >= 2) float32, class logits.
        embedding: (N, E) float32; the class logits where the network has no embedding.
        attention: (N, h, w) or (N, d, h, w) float16 in [0, 1], the map for the last class at the network's own
            resolution, scaled to each sample's range; None if not asked for, or if the network has neither a map nor
            features to make one from.
    """

    logits: NDArray[np.float32]
    embedding: NDArray[np.float32]
    attention: NDArray[np.float16] | None


def infer(
    network: nn.Module,
    pack: PackLike,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    batch_size: int,
    amp: bool = False,
    attention: bool = False,
    world: World | None = None,
) -> Inferred:
    """Run ``network`` in eval mode, and leave it there, over rows of ``pack``. Labels are not needed.

    With several processes each takes every n-th batch, and all of them get the whole result. Gradients, which cost
    many times the memory, are computed for those networks alone whose map must be made by Grad-CAM.
    """
    world = world or World()
    table = pd.DataFrame({"row": rows, "target": -1, "ratio": np.nan})
    chunks = [c.tolist() for c in torch.arange(len(table)).split(batch_size)][world.rank :: world.size]
    network.eval()
    parts: list[_Part] = []
    for batch in Reader(pack, table, device).batches(chunks):
        part = None
        if not attention or network not in _without_map:
            part = _part(network, batch, device, amp, attention)
        if part is None:
            _without_map.add(network)
            pieces = [_differentiated(network, piece, device, amp) for piece in _pieces(batch)]
            part = pieces[0] if len(pieces) == 1 else _joined(pieces)
        parts.append(part)
    return Inferred(*_joined(world.collect(parts)))


def _part(network: nn.Module, batch: Batch, device: torch.device, amp: bool, attention: bool) -> _Part | None:
    """What the network says without gradients; None where its map is asked for and has to be made with them."""
    with torch.no_grad(), autocast(device, amp):
        output = respond(network, batch)
    if attention and output.attention is None and output.features is not None:
        return None
    return (*_answer(output), _scaled(output.attention) if attention and output.attention is not None else None)


def _differentiated(network: nn.Module, batch: Batch, device: torch.device, amp: bool) -> _Part:
    """The same with gradients, and the map by Grad-CAM of the positive class."""
    # Grad-CAM differentiates by the features; a picture that wants gradients gives them even to frozen layers.
    with torch.enable_grad(), autocast(device, amp):
        batch.image.requires_grad_()
        output = respond(network, batch)
    if output.attention is not None:
        return (*_answer(output), _scaled(output.attention))
    possible = output.features is not None and output.features.requires_grad
    heat = grad_cam(output, max(2, output.logits.shape[1]) - 1) if possible else None
    return (*_answer(output), None if heat is None else _scaled(heat))


def _answer(output: Output) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    logits = class_logits(output.logits.detach().float())
    embedding = logits if output.embedding is None else output.embedding.detach().float()
    return logits.cpu().numpy(), embedding.cpu().numpy()


def _scaled(heat: Tensor) -> NDArray[np.float16]:
    """(B, 1, ...) to (B, ...) in [0, 1]."""
    scaled: NDArray[np.float16] = min_max(heat.detach().float())[:, 0].cpu().numpy().astype(np.float16)
    return scaled


def _pieces(batch: Batch) -> Iterator[Batch]:
    """The batch itself, or, of large volumes, parts of it with at most :data:`VOXELS` voxels."""
    count = len(batch.image)
    most = count if batch.image.ndim < 5 else max(1, VOXELS // batch.image[0].numel())
    if most >= count:
        yield batch
        return
    rows = {f.name: getattr(batch, f.name) for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)}
    for start in range(0, count, most):
        yield replace(batch, **{name: value[start : start + most] for name, value in rows.items()})


def _joined(parts: list[_Part]) -> _Part:
    heats = [heat for _, _, heat in parts if heat is not None]
    return (
        np.concatenate([logits for logits, _, _ in parts]),
        np.concatenate([embedding for _, embedding, _ in parts]),
        np.concatenate(heats) if heats else None,
    )
