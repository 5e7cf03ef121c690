"""MedSeg's COVID-19 CT segmentation (medicalsegmentation.com): 100 slices of over 40 patients, and 9 whole volumes.

Layout, read from loaders of both: ``tr_im.nii.gz`` with ``tr_mask.nii.gz`` (512 x 512 x 100, a slice a patient or
several; Eisen's MedSegCovid19), ``val_im.nii.gz`` (10 more without masks), ``rp_im/``, ``rp_msk/`` and
``rp_lung_msk/`` with ``1.nii.gz`` to ``9.nii.gz`` (``neuro-ml/amid: amid/medseg9.py``). Masks of the slices hold
1 ground glass, 2 consolidation and 3 pleural effusion, those of the volumes 1 and 2 (as amid has it); effusion is no
infection of the lung and is left out.

The 100 slices were JPEG pictures of the Italian society of radiology (SIRM), whose grey values the authors calibrated
by air and fat, so their Hounsfield units are approximate; they are read as pictures, slice by slice (``@slice=K``).
Several may be of one patient: the authors offer a table of slices and SIRM's cases, whose form is not known here and
which is not read. The 9 volumes are Radiopaedia's and may be of patients of covid19_ct_seg; that their values are
Hounsfield units is assumed. All have COVID-19: images are unlabelled here and serve their masks (``masks_only``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chestflow.data.ct_collections import volumes_in
from chestflow.data.sources.base import Reject, Row, SourceInfo, mask_reference, require
from chestflow.errors import DataError

INFO = SourceInfo(
    name="medicalsegmentation",
    title="COVID-19 CT segmentation of MedSeg",
    modalities=("ct_slice", "ct_volume"),
    classes=(),
    published_counts={},  # of labels; 100 (and 10) slices and 9 volumes have none
    licence="CC0 1.0 (as usually cited)",
    commercial_use=True,
    link="http://medicalsegmentation.com/covid19/",
)
STACKS = (("tr_im.nii.gz", "tr_mask.nii.gz"), ("val_im.nii.gz", "val_mask.nii.gz"))
#: Value in a mask -> class of chestflow.data.references.LESIONS.
LESIONS = {1: 1, 2: 2}


def _file(root: Path, name: str) -> Path | None:
    """A NIfTI file, compressed or not."""
    return next((path for path in (root / name, root / name.removesuffix(".gz")) if path.is_file()), None)


def _depth(path: Path) -> int:
    """Slices of a stack, by its header: the third dimension."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        shape = nibabel.load(path).shape
    except (ImageFileError, OSError, EOFError, ValueError):
        raise DataError(f"{path} is not a readable NIfTI file: get it again from {INFO.link}") from None
    if len(shape) < 3:
        raise DataError(f"{path} has {len(shape)} dimensions, not 3: get it again from {INFO.link}")
    return int(shape[2])


def _lesions(path: Path | None, place: int | None = None) -> tuple[str, ...]:
    if path is None:
        return ()
    return tuple(mask_reference(path, slice=place, values=(value,), lesion=c) for value, c in LESIONS.items())


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per slice of the stacks and one per volume; one reject per mask of a volume that is not there."""
    stacks = [(image, _file(root, mask)) for name, mask in STACKS if (image := _file(root, name)) is not None]
    require(root, INFO, *((STACKS[0][0], "rp_im") if not stacks and not (root / "rp_im").is_dir() else ()))
    for image, mask in stacks:
        for place in range(_depth(image)):
            yield Row(
                key=f"{image.name}@slice={place}",
                path=image,
                part=f"slice={place}",
                modality="ct_slice",
                label=None,
                site="sirm",
                infection_mask=_lesions(mask, place),
            )
    images, masks, lungs = (volumes_in(root / name) for name in ("rp_im", "rp_msk", "rp_lung_msk"))
    for name in sorted(images.keys() | masks.keys() | lungs.keys()):
        if name not in images:
            yield Reject(f"rp_im/{name}", "missing_file", "a mask is there, its volume is not")
            continue
        yield Row(
            key=images[name].relative_to(root).as_posix(),
            path=images[name],
            modality="ct_volume",
            label=None,
            patient=f"volume {name}",
            site="radiopaedia",
            lung_mask=(mask_reference(lungs[name]),) if name in lungs else (),
            infection_mask=_lesions(masks.get(name)),
        )
