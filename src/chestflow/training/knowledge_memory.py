"""What a frozen global branch said of each training slice, so that it is asked once a phase and not once an epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from chestflow.nn.knowledge_branches import Known
from chestflow.training.phases import Batch


class Memory:
    """Remembers, by row of the pack, the global pool and the heat map's box of slices as they are, not augmented.

    Each slice is asked about by itself: sums in a batch may depend on its size, and so a training that was interrupted
    would remember something else in the last digit than one that was not.
    """

    def __init__(self) -> None:
        self._known: dict[int, Known] = {}
        self._of: nn.Module | None = None

    def recall(self, network: Any, batch: Batch, heat: bool) -> Known:
        """What ``network`` says of the batch, in its order; the first time it is asked it looks."""
        inner = getattr(network, "module", network)
        if self._of is not inner:
            self._of, self._known = inner, {}
        rows = batch.rows.tolist()
        for place, row in enumerate(rows):
            if row not in self._known:
                self._known[row] = self._look(inner, batch, slice(place, place + 1), heat)
        found = [self._known[row] for row in rows]
        device = batch.image.device

        def joined(name: str) -> Any:
            parts = [getattr(one, name) for one in found]
            return None if parts[0] is None else torch.cat(parts).to(device)

        return Known(joined("pool"), joined("box"), joined("region"))

    @staticmethod
    @torch.no_grad()
    def _look(network: Any, batch: Batch, one: slice, heat: bool) -> Known:
        lung = None if batch.lung is None else batch.lung[one]
        infection = None if batch.infection is None else batch.infection[one]
        known: Known = network.look(batch.image[one], lung, infection, heat)
        region = None if known.region is None else known.region.cpu()  # a byte a pixel: not on a GPU
        return Known(known.pool, known.box, region)
