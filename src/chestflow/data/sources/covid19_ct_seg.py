"""COVID-19-CT-Seg (Zenodo 3757476): 20 CT volumes with masks of the lungs and of infection, as NIfTI.

Layout, read from ``haydengunraj/COVIDNet-CT: dataset_construction/radiopaedia_coronacases.py`` and other loaders of it:
``COVID-19-CT-Seg_20cases/``, ``Lung_Mask/`` (1 left, 2 right), ``Infection_Mask/`` and ``Lung_and_Infection_Mask/``
(1 left, 2 right, 3 infection), with a file of one name in each; the mirror on Kaggle has ``ct_scans/``, ``lung_mask/``,
``infection_mask/``, ``lung_and_infection_mask/`` and longer names of the volumes.

The ten volumes of Radiopaedia are not in Hounsfield units: as the authors' benchmark says
(``JunMa11/COVID-19-CT-Seg-Benchmark: README.md``), they were cut to [-1250, 250] and scaled to 0 to 255. The window is
undone; validation warns. ``neuro-ml/COVID-19-Triage: scripts/prepare_medseg.py`` flips these ten after it has applied
their affines, so their orientation may be wrong, which was not checked here. A case of Radiopaedia is taken for a
patient. All patients have COVID-19: volumes are unlabelled here and serve their masks (``masks_only``), since as a
class they would be told by their set. COVID-SemiSeg's 1600 slices are of volumes of the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chestflow.data.ct_collections import volume_named, volumes_in
from chestflow.data.sources.base import Reject, Row, SourceInfo, mask_reference, require

INFO = SourceInfo(
    name="covid19_ct_seg",
    title="COVID-19 CT lung and infection segmentation",
    modalities=("ct_volume",),
    classes=(),
    published_counts={},  # of labels; 20 volumes have none
    licence="CC BY 4.0 on Zenodo, CC BY-NC-SA in the authors' benchmark",
    commercial_use=None,
    link="https://zenodo.org/record/3757476",
)
#: What -> the folder's name on Zenodo and in the mirror on Kaggle.
FOLDERS = {
    "volumes": ("COVID-19-CT-Seg_20cases", "ct_scans"),
    "lung": ("Lung_Mask", "lung_mask"),
    "infection": ("Infection_Mask", "infection_mask"),
    "both": ("Lung_and_Infection_Mask", "lung_and_infection_mask"),
}
#: The lung window that Radiopaedia's volumes were cut to, in HU.
WINDOW = "window=-1250,250"


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per volume; one reject per mask of a volume that is not there."""
    folders = {
        what: next((root / name for name in names if (root / name).is_dir()), None) for what, names in FOLDERS.items()
    }
    require(root, INFO, *(FOLDERS[what][0] for what in ("volumes",) if folders[what] is None))
    found = {what: volumes_in(folder) for what, folder in folders.items()}
    for name in sorted(set().union(*found.values())):
        if name not in found["volumes"]:
            yield Reject(f"{FOLDERS['volumes'][0]}/{name}", "missing_file", "a mask is there, its volume is not")
            continue
        path, volume = found["volumes"][name], volume_named(name)
        both = found["both"].get(name)
        yield Row(
            key=path.relative_to(root).as_posix(),
            path=path,
            modality="ct_volume",
            label=None,
            patient=volume.patient if volume else name,
            patient_source=volume.collection if volume else None,
            study=name,
            site=volume.collection if volume else None,
            lung_mask=_mask(found["lung"].get(name), both, (1, 2, 3)),
            infection_mask=_mask(found["infection"].get(name), both, (3,)),
            part=WINDOW if volume and volume.collection == "radiopaedia" else "",
        )


def _mask(own: Path | None, both: Path | None, values: tuple[int, ...]) -> tuple[str, ...]:
    """A structure's own mask, else what the mask of both structures says of it."""
    if own is not None:
        return (mask_reference(own),)
    return () if both is None else (mask_reference(both, values=values),)
