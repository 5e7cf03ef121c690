"""The infection ratio as a served model finds it: by its own segmenter, in lungs by threshold.

For volumes whose source gives masks it is found beside theirs, where it is needed: on the test role, whose ensemble is
evaluated with both. A network that saw an image's group is never asked.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from chestflow.segmentation.reading import Item, Mask

if TYPE_CHECKING:
    from chestflow.config_segmentation import Segment
    from chestflow.segmentation.infecting import Seen
    from chestflow.segmentation.infection import InfectionSegmenter

COLUMN = "ratio_network"


def tested(items: list[Item], splits: pd.DataFrame, infection: InfectionSegmenter | None) -> list[Item]:
    """The volumes with source masks that some trained fold tests; none without a network for volumes."""
    if infection is None or "ct_volume" not in infection.modalities:
        return []
    names = set(splits.loc[splits["role"] == "test", "image_id"])
    return [i for i in items if i.modality == "ct_volume" and i.infection_mask and i.image_id in names]


def ratio_of(
    item: Item, seen: Seen, found: Mask | None, infection: InfectionSegmenter, settings: Segment
) -> dict[str, float]:
    """The column's cell of one volume; empty for a slice, which has no served ratio.

    Args:
        item: the image.
        seen: as the stage read it.
        found: the infection that the network found in it; None without lungs.
        infection: all networks.
        settings: section ``segment`` of params.yaml.
    """
    if seen.spacing is None:
        return {}
    lung = seen.lung
    if seen.lung_from == "source":  # a served model is given no lungs either
        from chestflow.segmentation.lungs import segment_ct

        hu = np.asarray(seen.pixels, np.int16)
        rules = (settings.ct_lung_threshold_hu, settings.ct_closing_mm, settings.ct_convex_wall)
        lung = segment_ct(hu, seen.spacing, *rules)
        found = infection.for_image(item.image_id).predict_volume(hu, seen.spacing, lung) if lung.any() else None
    if lung is None or found is None or not lung.any():
        return {COLUMN: math.nan}
    return {COLUMN: float(found.sum() / (lung | found).sum())}
