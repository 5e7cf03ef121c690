"""Asking the infection segmenter about many images: workers read and find the lungs, this process predicts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chestflow.errors import naming_image
from chestflow.parallel import cores, ordered_map
from chestflow.segmentation.infection import InfectionSegmenter
from chestflow.segmentation.reading import Item, Mask, lungs_of_volume
from chestflow.segmentation.training_loop import pinned_threads

if TYPE_CHECKING:
    from chestflow.config_segmentation import Segment

VOLUME_READERS = 2  # whole volumes wait in memory for their turn


@dataclass(frozen=True)
class Seen:
    """An image as it was read: a slice in grey values or a volume in HU, and its lungs where known."""

    pixels: NDArray[np.uint8] | NDArray[np.int16]
    spacing: tuple[float, float, float] | None
    lung: Mask | None
    lung_from: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pixels.shape


def look(item: Item, settings: Segment) -> Seen:
    """Read a CT slice or volume with its lungs; runs in a worker. A slice has lungs where its source gives them."""
    from chestflow.imaging.read import read_mask, read_radiograph, read_volume

    with naming_image(item.image_id, "segmented"):
        if item.modality == "ct_volume":
            volume = read_volume(Path(item.path))
            return Seen(volume.hu, volume.spacing_mm, *lungs_of_volume(item, volume.hu, volume.spacing_mm, settings))
        grey = read_radiograph(Path(item.path)).uint8()
        if item.lung_mask:
            return Seen(grey, None, read_mask(item.lung_mask, grey.shape), "source")
        return Seen(grey, None, None, "none")


def looks(items: list[Item], settings: Segment, workers: int | None) -> Iterator[tuple[Item, Seen]]:
    """:func:`look` at all, slices first; few volumes at a time."""
    small = [item for item in items if item.modality != "ct_volume"]
    large = [item for item in items if item.modality == "ct_volume"]
    few = min(VOLUME_READERS, cores() if workers is None else workers)
    work = partial(look, settings=settings)
    read = chain(ordered_map(work, small, workers), ordered_map(work, large, few, chunk=1))
    return zip(small + large, read, strict=True)


def probability(segmenter: InfectionSegmenter, seen: Seen) -> NDArray[np.float32] | None:
    """Of infection in what was seen, on its own grid; None without a network, or without lungs in a volume."""
    if seen.spacing is None:
        return segmenter.probability_slice(np.asarray(seen.pixels, np.uint8))
    if seen.lung is None or not seen.lung.any():
        return None
    return segmenter.probability_volume(np.asarray(seen.pixels, np.int16), seen.spacing, seen.lung)


def infections(
    items: list[Item], segmenter: InfectionSegmenter, settings: Segment, *, threads: int, workers: int | None
) -> Iterator[tuple[Item, Seen, Mask | None]]:
    """What networks that did not see an image's group find in it."""
    for item, seen in looks(items, settings, workers):
        asked = segmenter.for_image(item.image_id)
        with pinned_threads(threads):
            found = probability(asked, seen)
        yield item, seen, None if found is None else found > asked.final[item.modality].threshold
