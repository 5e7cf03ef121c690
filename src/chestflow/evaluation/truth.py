"""Which lesions of a picture are known: those that its source outlines or boxes. What a network marked is no truth.

Outlines have a bit of their own in the masks, so that they are known where a network's infection mask takes their place
before the classifiers too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.data.packs import Pack
from chestflow.segmentation import places

INFECTION_BIT, OUTLINED_BIT = 2, 4
#: What is known of a picture's lesions: their outline, boxes around them, nothing.
OUTLINE, BOXES, NONE = "outline", "boxes", "none"


class Truth:
    """What is known of the lesions of a pack's pictures.

    Args:
        pack: whose index says which masks it holds.
        out: the folder of outs; the modality's ratio.parquet says whose lesions are outlined or boxed.

    Raises:
        DataError: the stage ``segment`` has not run.
    """

    def __init__(self, pack: Pack, out: Path) -> None:
        table = places.ratios(out, pack.recipe["modality"]).set_index("image_id")
        self._kinds = pd.Series(NONE, index=table.index, dtype="object")
        if "infection_from" in table:
            self._kinds[table["infection_from"] == BOXES] = BOXES
        if "outlined" in table:
            self._kinds[table["outlined"]] = OUTLINE

    def kind(self, image_id: str) -> str:
        """:data:`OUTLINE`, :data:`BOXES` or :data:`NONE`."""
        return str(self._kinds.get(image_id, NONE))

    def lesion(self, image_id: str, bits: NDArray[np.uint8] | None) -> NDArray[np.bool_] | None:
        """The lesions (boxes filled) among the bits of a picture's masks; None where the truth is not known."""
        kind = self.kind(image_id)
        if bits is None or kind == NONE:
            return None
        return np.asarray((bits & (INFECTION_BIT if kind == BOXES else OUTLINED_BIT)) > 0)
