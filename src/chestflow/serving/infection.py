"""Where the infection lies in an input: the caller's mask, else what the bundle's own segmenter finds, else unknown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chestflow.errors import TrainingError
from chestflow.imaging.images import Radiograph, Volume

if TYPE_CHECKING:
    from chestflow.segmentation.infection import InfectionSegmenter

#: Where a ratio comes from: the caller's mask, the bundle's segmenter, nowhere.
MASK, NETWORK, UNKNOWN = "mask", "network", "unknown"
#: The segmenter's folder in a bundle.
FOLDER = "infection"

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Marked:
    """The masks of one input on its original grid, (H, W) or (D, H, W).

    Attributes:
        lung: with the infection, which lies in the lungs as when the training images were segmented; None where
            nothing can find lungs, all False where there are none.
        infection: None where it is unknown.
        origin: of the infection: :data:`MASK`, :data:`NETWORK` or :data:`UNKNOWN`.
    """

    lung: Mask | None
    infection: Mask | None
    origin: str

    @property
    def bits(self) -> NDArray[np.uint8] | None:
        """Both masks as the recipes take them: 1 lung, 2 infection; None where both are unknown."""
        from chestflow.segmentation.masks import compose

        return compose(self.lung, self.infection)

    @property
    def ratio(self) -> float | None:
        """Infection / lung on the original grid; None where either is unknown or there are no lungs."""
        if self.lung is None or self.infection is None or not self.lung.any():
            return None
        return float(self.infection.sum() / self.lung.sum())

    @property
    def ratio_from(self) -> str:
        """Where the ratio comes from."""
        return UNKNOWN if self.ratio is None else self.origin


class Marker:
    """Finds the infection of inputs; loads the bundle's segmenter with the first one that needs it.

    Args:
        folder: the bundle's.
        modality: that the model reads.
    """

    def __init__(self, folder: Path, modality: str) -> None:
        self.folder, self.modality = folder / FOLDER, modality
        self._segmenter: InfectionSegmenter | None = None

    def mark(self, image: Radiograph | Volume, lung: Mask | None, given: Mask | None) -> Marked:
        """Both masks of an input.

        Args:
            image: on its original grid.
            lung: its lungs, None where nothing can find them.
            given: the caller's infection mask, which wins over any segmenter; or None.

        Raises:
            TrainingError: the bundle's segmenter is damaged.
        """
        found, origin = given, MASK
        if given is None:
            found, origin = self._found(image, lung), NETWORK
        if found is None:
            return Marked(lung, None, UNKNOWN)
        # without any lung nothing is known of it: what sticks out of lungs that were not found says nothing
        return Marked(lung | found if lung is not None and lung.any() else lung, found, origin)

    def _found(self, image: Radiograph | Volume, lung: Mask | None) -> Mask | None:
        """What the segmenter finds; None without one, or in a volume without lungs."""
        if self.modality == "cxr" or not self.folder.is_dir():
            return None
        if not isinstance(image, Volume):
            return self._load().predict_slice(image.uint8())
        if lung is None or not lung.any():
            return None
        return self._load().predict_volume(image.hu, image.spacing_mm, lung)

    def _load(self) -> InfectionSegmenter:
        if self._segmenter is None:
            from chestflow.segmentation import infection

            try:
                self._segmenter = infection.load(self.folder, halves=False)
            except TrainingError:
                raise TrainingError(
                    "the model's infection segmenter is missing or damaged: register the model again"
                ) from None
        return self._segmenter
