"""Pictures of where a network looked, beside the lesions that are known, for answers that were right and wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from chestflow.data.packs import Pack
from chestflow.evaluation.localisation import rescale, upsample
from chestflow.evaluation.truth import BOXES, Truth
from chestflow.files import read_parquet
from chestflow.imaging.overlay import blend, volume_slice, window_uint8

JPEG = [cv2.IMWRITE_JPEG_QUALITY, 88]


@dataclass
class Shown:
    """One picture of the gallery, JPEG bytes (a tenth of PNG's, for heat over noise) and the sentence under it."""

    jpeg: bytes
    caption: str


def _picture(image: np.ndarray, heat: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, str]:
    """The image beside its overlay, RGB; and of a volume, which slice it is."""
    heat, which = rescale(upsample(heat, image.shape)), ""
    if image.ndim == 3:
        z = volume_slice(image, heat, mask)
        which = f", slice {z} of {len(image)}"
        image, heat, mask = window_uint8(image[z]), heat[z], None if mask is None else mask[z]
    return np.concatenate([blend(image, None), blend(image, heat, mask)], axis=1), which


def gallery(cases: pd.DataFrame, run: str, pack: Pack, out: Path, *, most: int = 4) -> list[Shown]:
    """Pictures of the first ``most`` cases.

    Args:
        cases: columns ``fold, image_id, caption``, in the order in which they are to be shown.
        run: the run whose attention is shown.
        pack: the pack that the run was trained from.
        out: the folder of outs.

    Returns:
        Nothing for a run that has no maps, because it looks at no picture. Lesions are outlined where their source
        marks them; where it only draws boxes, the sentence says so.
    """
    shown: list[Shown] = []
    truth = Truth(pack, out)
    for fold, image_id, caption in cases[["fold", "image_id", "caption"]].head(most).to_numpy().tolist():
        folder = out / "predictions" / run / str(fold)
        if not (folder / "attention.npy").exists():
            continue
        order = read_parquet(folder / "test.parquet")["image_id"].tolist()
        heat = np.load(folder / "attention.npy", mmap_mode="r")[order.index(image_id)]
        images, masks = pack.gather(pack.rows_of([image_id]))
        lesion = truth.lesion(image_id, None if masks is None else masks[0])
        picture, which = _picture(images[0], np.asarray(heat, np.float32), lesion)
        boxed = ", line: the source's boxes" if truth.kind(image_id) == BOXES else ""
        shown.append(Shown(cv2.imencode(".jpg", picture[..., ::-1], JPEG)[1].tobytes(), caption + which + boxed))
    return shown
