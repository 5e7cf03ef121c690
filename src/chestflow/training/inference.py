"""Running a trained network over rows of a pack: logits, embeddings and attention maps."""

from __future__ import annotations

from dataclasses import dataclass

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
from chestflow.training.phases import respond


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

    With several processes each takes every n-th batch, and all of them get the whole result.
    """
    world = world or World()
    table = pd.DataFrame({"row": rows, "target": -1, "ratio": np.nan})
    chunks = [c.tolist() for c in torch.arange(len(table)).split(batch_size)][world.rank :: world.size]
    network.eval()
    parts: list[tuple[NDArray, NDArray, NDArray | None]] = []
    for batch in Reader(pack, table, device).batches(chunks):
        # Grad-CAM differentiates by the features; a picture that wants gradients gives them even to frozen layers.
        with torch.set_grad_enabled(attention), autocast(device, amp):
            batch.image.requires_grad_(attention)
            output = respond(network, batch)
        logits = class_logits(output.logits.detach().float())
        embedding = logits if output.embedding is None else output.embedding.detach().float()
        heat = _heat(output) if attention else None
        parts.append((logits.cpu().numpy(), embedding.cpu().numpy(), heat))
    parts = world.collect(parts)
    heats = [heat for _, _, heat in parts if heat is not None]
    return Inferred(
        logits=np.concatenate([logits for logits, _, _ in parts]),
        embedding=np.concatenate([embedding for _, embedding, _ in parts]),
        attention=np.concatenate(heats) if heats else None,
    )


def _heat(output: Output) -> NDArray[np.float16] | None:
    """The network's own map, else Grad-CAM of the positive class, (B, ...) without the channel."""
    heat: Tensor
    if output.attention is not None:
        heat = output.attention.detach()
    elif output.features is not None and output.features.requires_grad:
        heat = grad_cam(output, max(2, output.logits.shape[1]) - 1)
    else:
        return None
    return min_max(heat.float())[:, 0].cpu().numpy().astype(np.float16)
