"""Drawn CT volumes and slices with their infections, packed as the stages before training leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestflow.config import Params
from chestflow.data.recipes import apply
from chestflow.files import read_parquet, write_json, write_parquet
from chestflow.imaging.images import Radiograph
from chestflow.segmentation import infection, places, slice_network
from chestflow.segmentation.infection import InfectionSegmenter, Segmenter
from tests.model import toy_models
from tests.model.test_infection_ratio import write_outs as write_volumes

#: HU of grey 0 and 255 in the drawn slices
WINDOW = (-1350.0, 150.0)
SIDE = 80  # DECAPS has no smaller form


def params(runs: dict[str, Any] | None = None) -> Params:
    """The toys' parameters with drawn slices beside the volumes; ``runs`` are a test's own."""
    plain = toy_models.params()
    known = {name: plain.model_dump(mode="json")[name] for name in ("cohorts", "recipes", "tasks")}
    known["cohorts"]["slices"] = {"sets": ["phantom"], "modality": "ct_slice"}
    known["recipes"]["flat"] = {"modality": "ct_slice", "size": [SIDE, SIDE]}
    known["tasks"]["slice_covid"] = {"cohort": "slices", "classes": {"rest": ["cap"], "covid19": ["covid19"]}}
    return toy_models.params(**known, **({} if runs is None else {"runs": runs, "ensembles": {}}))


def grey(hu: np.ndarray) -> np.ndarray:
    """HU in the lung window as uint8."""
    low, high = WINDOW
    return (np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def ct_slice(seed: int, covid: bool) -> tuple[np.ndarray, np.ndarray]:
    """The middle slice of a drawn volume, (48, 48) uint8, and its infection, bool."""
    hu, infected = toy_models.ct(seed, covid)
    return grey(hu[len(hu) // 2]), infected[len(hu) // 2]


def write_outs(out: Path) -> None:
    """The volumes' outs with infection masks, and as many slices, all of one patient each."""
    write_volumes(out)
    recipe = params().recipes["flat"].model_dump(mode="json")
    packed, masks, rows, splits = [], [], [], []
    for i, role in enumerate(toy_models.ROLES):
        picture, infected = ct_slice(i, i % 2 == 1)
        image = Radiograph(picture.astype(np.float32), 8, None, "L", "png")
        data, bits, _ = apply(image, (2 * infected).astype(np.uint8), recipe)
        assert bits is not None
        packed.append(data)
        masks.append(bits)
        name = f"ct_slice-{i:04d}"
        rows.append({"image_id": name, "patient_id": f"phantom-p{i}", "label": "covid19" if i % 2 else "cap"})
        splits.append({"cohort": "slices", "fold": 0, "image_id": name, "group_id": name, "role": role})
    about = {"source": "phantom", "modality": "ct_slice", "licence": "CC0-1.0", "commercial_use": True}
    _append(out / "manifest.parquet", pd.DataFrame(rows).assign(**about))
    _append(out / "splits.parquet", pd.DataFrame(splits))
    ratios = pd.DataFrame(rows)[["image_id"]].assign(ratio=float("nan"))
    write_parquet(places.segmented(out, "ct_slice") / "ratio.parquet", ratios)
    folder = out / "packs" / "flat"
    folder.mkdir(parents=True)
    np.save(folder / "data.npy", np.stack(packed))
    np.save(folder / "masks.npy", np.stack(masks))
    index = pd.DataFrame({"row": range(len(rows)), "image_id": [row["image_id"] for row in rows]})
    write_parquet(folder / "index.parquet", index.assign(has_lung=False, has_infection=True))
    write_json(folder / "recipe.json", recipe)


def _append(path: Path, rows: pd.DataFrame) -> None:
    whole = read_parquet(path)
    write_parquet(path, pd.concat([whole, rows.astype({c: whole[c].dtype for c in rows})], ignore_index=True))


def write_segmenter(out: Path, picture: np.ndarray) -> Segmenter:
    """An untrained segmenter of slices that calls the likelier half of ``picture``, (H, W) uint8, infected."""
    network = Segmenter(slice_network.build(slice_network.Shape("resnet18", 8, 64)))
    network.model.network.eval()
    network.threshold = float(np.median(network.of_picture(picture)))
    infection.save(InfectionSegmenter({"ct_slice": network}), places.infection(out, "ct_slice"))
    return network
