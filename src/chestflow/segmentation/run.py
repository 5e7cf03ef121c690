"""Stage segment@modality: lung and infection masks on the original grid, and the infection ratio there.

Lungs: the source's masks where it gives them (on CT only if asked for), else a threshold on CT volumes and a small
U-Net on X-rays (:mod:`.planning` says on which images it may train). Infection: the source's masks, else the trained
segmenter's where there is one for the modality, else the source's boxes: those go into the mask file for localisation,
and into nothing else. So does what the source outlines, where the segmenter masks all images alike.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from chestflow.errors import naming_image
from chestflow.files import write_json, write_parquet
from chestflow.parallel import ordered_map
from chestflow.segmentation import found_ratio, places
from chestflow.segmentation import masks as mask_files
from chestflow.segmentation.reading import Item, Lesions, Mask, infection_of, items_of, lungs_of_volume, read_small

if TYPE_CHECKING:
    from chestflow.config import Segment
    from chestflow.segmentation.fitting import Fitted
    from chestflow.segmentation.infection import InfectionSegmenter

RATIO_COLUMNS = {
    "image_id": "str",
    "lung_ml": "float64",
    "infection_ml": "float64",
    "ratio": "float64",
    "has_lung": "bool",
    "has_infection": "bool",
    "lung_from": "str",
    "infection_from": "str",
    "outlined": "bool",
    found_ratio.COLUMN: "float64",
}


def segment(
    modality: str,
    manifest: pd.DataFrame,
    splits: pd.DataFrame,
    groups: pd.DataFrame,
    settings: Segment,
    out: Path,
    *,
    seed: int,
    threads: int = 2,
    workers: int | None = None,
    infection: InfectionSegmenter | None = None,
) -> None:
    """Write ``out/segment/<modality>``: masks/, ratio.parquet, and of X-rays the lungs' segmenter with its Dice where
    one is trained.

    Args:
        modality: whose images are segmented.
        manifest: all images.
        splits: the cohorts' roles in the folds that are trained.
        groups: image_id and group_id.
        settings: section ``segment`` of params.yaml.
        out: the folder of all stages' outs.
        seed: of the X-ray segmenter.
        threads: CPU threads of its training, pinned.
        workers: processes; None takes one per core.
        infection: what the modality's stage ``infection`` trained; None leaves images without source masks unknown.

    Raises:
        DataError: an image or mask cannot be read (named by image_id), or sets without lung masks shall train.
    """
    final, folder = places.segmented(out, modality), out / f".segment-{modality}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "masks").mkdir(parents=True)
    try:
        fitted = None
        if modality == "cxr" and settings.cxr_lungs.sets:
            from chestflow.segmentation.fitting import fit

            fitted = fit(manifest, splits, groups, settings.cxr_lungs, seed=seed, threads=threads, workers=workers)
            from chestflow.segmentation.cxr_lungs import save

            save(fitted.final, folder / "cxr_lungs.safetensors")
            write_json(folder / "cxr_lungs.json", fitted.evidence)
        items = items_of(manifest[manifest["modality"] == modality])
        asked = [item for item in items if _is_for_network(item, infection, settings)]
        later = [item for item in items if fitted is not None and not item.lung_mask]
        both = [item for item in found_ratio.tested(items, splits, infection) if item not in asked]
        now = sorted(set(items) - set(later) - set(asked) - set(both), key=lambda item: item.image_id)
        work = partial(_segment_one, settings=settings, folder=folder / "masks")
        rows = list(ordered_map(work, now, workers))
        if fitted is not None:
            rows += _segment_by_network(later, fitted, folder / "masks", workers)
        if infection is not None:
            from chestflow.segmentation.infecting import infections

            for item, seen, found in infections(asked + both, infection, settings, threads=threads, workers=workers):
                with naming_image(item.image_id, "segmented"):
                    lesions = infection_of(item, seen.shape, found if item in asked else None)
                row = _finish(item.image_id, seen.lung, seen.lung_from, lesions, seen.spacing, folder / "masks")
                rows.append(row | found_ratio.ratio_of(item, seen, found, infection, settings))
        table = pd.DataFrame(rows, columns=list(RATIO_COLUMNS)).astype(RATIO_COLUMNS)
        write_parquet(folder / "ratio.parquet", table.sort_values("image_id", ignore_index=True))
        if final.exists():
            shutil.rmtree(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_for_network(item: Item, infection: InfectionSegmenter | None, settings: Segment) -> bool:
    if infection is None or item.modality not in infection.modalities:
        return False
    return not item.infection_mask or item.modality in settings.infection_by_network


def _segment_one(item: Item, settings: Segment, folder: Path) -> dict[str, Any]:
    """Masks and ratio of one image without a network; runs in a worker."""
    from chestflow.imaging.read import read_mask, read_radiograph, read_volume

    with naming_image(item.image_id, "segmented"):
        spacing, lung, lung_from = None, None, "none"
        shape: tuple[int, ...]
        if item.modality == "ct_volume":
            volume = read_volume(Path(item.path))
            spacing, shape = volume.spacing_mm, volume.hu.shape
            lung, lung_from = lungs_of_volume(item, volume.hu, spacing, settings)
        else:
            shape = read_radiograph(Path(item.path)).pixels.shape
            if item.lung_mask:
                lung, lung_from = read_mask(item.lung_mask, shape), "source"
        lesions = infection_of(item, shape)
    return _finish(item.image_id, lung, lung_from, lesions, spacing, folder)


def _segment_by_network(
    items: list[Item], fitted: Fitted, folder: Path, workers: int | None
) -> Iterator[dict[str, Any]]:
    """Masks and ratio of X-rays without source masks: workers read, this process predicts."""
    from chestflow.segmentation.cxr_lungs import outline, probabilities

    read = ordered_map(partial(read_small, size=fitted.final.size), items, workers)
    for item, (square, shape, lesions) in zip(items, read, strict=True):
        lung = outline(probabilities(fitted.for_image(item.image_id), square[None])[0], shape)
        yield _finish(item.image_id, lung, "unet", lesions, None, folder)


def _finish(
    image_id: str,
    lung: Mask | None,
    lung_from: str,
    lesions: Lesions,
    spacing: tuple[float, float, float] | None,
    folder: Path,
) -> dict[str, Any]:
    """Write the mask file and measure it; boxes, and outlines that do not count, are written and not measured."""
    infection = None if lesions.origin == mask_files.BOXES else lesions.mask
    if lung is not None and not lung.any():
        lung, lung_from = None, "none"
    if lung is not None and infection is not None and lung_from != "source":
        lung = lung | infection  # an infection lies in the lungs; a dense one looks like chest wall to the segmenters
    bits = mask_files.compose(lung, lesions.mask, lesions.outlined)
    if bits is not None:
        mask_files.write(folder, image_id, bits, spacing)
    inside = int(lung.sum()) if lung is not None else 0
    infected = int(infection.sum()) if infection is not None else 0
    millilitres = math.prod(spacing) / 1000.0 if spacing is not None else math.nan
    return {
        "image_id": image_id,
        "lung_ml": inside * millilitres if lung is not None else math.nan,
        "infection_ml": infected * millilitres if infection is not None else math.nan,
        "ratio": infected / inside if lung is not None and infection is not None else math.nan,
        "has_lung": lung is not None,
        "has_infection": infection is not None,
        "lung_from": lung_from,
        "infection_from": lesions.origin,
        "outlined": lesions.outlined is not None,
    }
