"""COVID-SemiSeg (Inf-Net): 50 CT slices with infection masks by doctors, and 1600 slices of 20 volumes without.

Layout, as the authors ship it and ``DengPingFan/Inf-Net`` reads it, below ``TrainingSet/`` or in the set's folder:
``LungInfection-Train/Doctor-label/{Imgs,GT,Edge}``, ``LungInfection-Train/Pseudo-label/Imgs`` and
``MultiClassInfection-Train/GT`` (palette pictures: 1 ground glass, 2 consolidation). The union of the two classes is
the binary mask, in all 50 slices to the pixel. Edges are derived from the masks and are left out.

No slice has a label here: all are of patients with COVID-19, so that as a class they would be told by their set. They
take the roles ``masks_only`` and ``unlabelled``. The 1600 are named after their volume, of the two collections that
covid19_ct_seg also takes its volumes from, and patients are named alike there. The set names no patients of the 50; as
the authors say they are of medicalsegmentation's 100 slices, cropped, which a perceptual hash does not always show.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from chestflow.data.ct_collections import volume_named
from chestflow.data.sources.base import Reject, Row, SourceInfo, mask_reference, pictures, require

INFO = SourceInfo(
    name="covid_semiseg",
    title="COVID-SemiSeg",
    modalities=("ct_slice",),
    classes=(),
    published_counts={},  # of labels; 50 and 1600 slices have none
    licence="non-commercial research",
    commercial_use=False,
    link="https://github.com/DengPingFan/Inf-Net",
)
LABELLED, UNLABELLED = "LungInfection-Train/Doctor-label", "LungInfection-Train/Pseudo-label/Imgs"
CLASSES = "MultiClassInfection-Train/GT"
_PLACE = re.compile(r"^(?:Data-\d+_)?(?P<volume>.+)_(?P<slice>\d+)$")


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per slice; one reject per mask without a slice. A slice without a mask counts as unlabelled."""
    top = root / "TrainingSet" if (root / "TrainingSet").is_dir() else root
    within = top.relative_to(root)
    require(root, INFO, *((within / name).as_posix() for name in (f"{LABELLED}/Imgs", f"{LABELLED}/GT")))
    binary = {path.stem: path for path in pictures(top / LABELLED / "GT")}
    classes = {path.stem: path for path in pictures(top / CLASSES)} if (top / CLASSES).is_dir() else {}
    images = {path.stem: path for path in pictures(top / LABELLED / "Imgs")}
    for stem in sorted(images.keys() | binary.keys() | classes.keys()):
        if stem not in images:
            yield Reject(
                (within / LABELLED / "Imgs" / stem).as_posix(), "missing_file", "a mask is there, its slice is not"
            )
            continue
        yield Row(
            key=images[stem].relative_to(root).as_posix(),
            path=images[stem],
            modality="ct_slice",
            label=None,
            infection_mask=_masks(classes.get(stem), binary.get(stem)),
        )
    if not (top / UNLABELLED).is_dir():
        return
    for path in pictures(top / UNLABELLED):
        match = _PLACE.match(path.stem)
        volume = volume_named(match["volume"]) if match else None
        yield Row(
            key=path.relative_to(root).as_posix(),
            path=path,
            modality="ct_slice",
            label=None,
            patient=volume.patient if volume else match["volume"] if match else None,
            patient_source=volume.collection if volume else None,
            study=match["volume"] if match else None,
            site=volume.collection if volume else None,
        )


def _masks(classes: Path | None, binary: Path | None) -> tuple[str, ...]:
    """The mask by class where that is there: its union is the binary one."""
    if classes is not None:
        return tuple(mask_reference(classes, values=(lesion,), lesion=lesion) for lesion in (1, 2))
    return () if binary is None else (mask_reference(binary),)
