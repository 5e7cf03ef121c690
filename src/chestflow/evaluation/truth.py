"""Which lesions of a picture are known: those that its source outlines or boxes. What a network marked is no truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.data.packs import Pack
from chestflow.segmentation import places

INFECTION_BIT = 2
#: What is known of a picture's lesions: their outline, boxes around them, nothing.
OUTLINE, BOXES, NONE = "outline", "boxes", "none"


class Truth:
    """What is known of the lesions of a pack's pictures.

    Args:
        pack: whose index says which masks it holds.
        out: the folder of outs; the modality's ratio.parquet says who made each mask.

    Raises:
        DataError: the stage ``segment`` has not run.
    """

    def __init__(self, pack: Pack, out: Path) -> None:
        table = places.ratios(out, pack.recipe["modality"]).set_index("image_id")
        self._from = table["infection_from"] if "infection_from" in table else pd.Series(NONE, index=table.index)
        self._known = pack.index.set_index("image_id")["has_infection"]

    def kind(self, image_id: str) -> str:
        """:data:`OUTLINE`, :data:`BOXES` or :data:`NONE`."""
        origin = self._from.get(image_id)
        if origin == "boxes":
            return BOXES
        return OUTLINE if bool(self._known[image_id]) and origin != "network" else NONE

    def lesion(self, image_id: str, bits: NDArray[np.uint8] | None) -> NDArray[np.bool_] | None:
        """The lesions (boxes filled) among the bits of a picture's masks; None where the truth is not known."""
        if bits is None or self.kind(image_id) == NONE:
            return None
        return np.asarray((bits & INFECTION_BIT) > 0)
