"""The manifest: one row per image or volume, with one vocabulary of labels.

Unknown is null, never a guess. Paths are relative to the repository root. ``image_id`` is the only name of an
image that later stages print.
"""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import pandas as pd

from chestflow.errors import DataError

Modality = Literal["cxr", "ct_slice", "ct_volume"]
Label = Literal[
    "normal", "bacterial_pneumonia", "viral_pneumonia", "pneumonia", "cap", "other_infection", "non_covid", "covid19"
]
MODALITIES: tuple[str, ...] = get_args(Modality)
LABELS: tuple[str, ...] = get_args(Label)
POSITIVE = "covid19"
#: Lower, middle and upper lobes of the left and right lung.
LOBES = ("LLL", "LUL", "RLL", "RML", "RUL")

#: column -> pandas dtype. Masks are lists of paths (composed by union), boxes lists of [x, y, width, height] in pixels.
COLUMNS: dict[str, str] = {
    "image_id": "str",  # "<source>-<12 hex>", a keyed hash of the source's own relative path
    "source": "str",
    "modality": "str",
    "path": "str",  # a file, the folder of a series, or a part of it: see chestflow.data.references
    "label": "str",
    "patient_id": "str",  # "<source>-<12 hex>", a keyed hash; null where the source gives no patient
    "study_id": "str",
    "view": "str",
    "sex": "str",  # F | M
    "age": "Float64",  # years
    "site": "str",
    "width": "Int64",  # pixels
    "height": "Int64",
    "depth": "Int64",  # slices; 1 for images
    "bits": "Int64",
    "color_mode": "str",  # L | RGB | RGBA | I;16 | HU, as stored; a volume of grey values says L
    "file_format": "str",  # png | jpeg | dicom | nifti, by content and not by the name's ending
    "spacing_mm": "object",  # [z, y, x], or [y, x] for images
    "series_uid": "str",  # keyed hash
    "sha256": "str",  # of the file; of the sorted slices for a series
    "phash": "str",  # 64-bit perceptual hash in hex; null for volumes
    "lung_mask": "object",
    "infection_mask": "object",
    "boxes": "object",
    "infected_slices": "object",  # of a volume, from 0 at the feet; [] says none, null that nobody looked
    "infected_lobes": "object",  # of LOBES
    "severity": "Float64",  # Brixia score, 0 to 18; null where nobody scored the image
    "official_split": "str",  # train | tune | test | null
    "licence": "str",
    "commercial_use": "boolean",  # whether the stated licence allows it; null where none is stated
}

REJECT_COLUMNS = ("source", "image_id", "reason", "detail")


def empty() -> pd.DataFrame:
    """A manifest without rows."""
    return conform(pd.DataFrame({name: [] for name in COLUMNS}))


def conform(frame: pd.DataFrame) -> pd.DataFrame:
    """Order the columns, add missing ones as null, and set the dtypes of :data:`COLUMNS`.

    Raises:
        DataError: a column is unknown, a label or modality is outside the vocabulary, or an image_id occurs twice.
    """
    unknown = sorted(set(frame.columns) - set(COLUMNS))
    if unknown:
        raise DataError(f"manifest has unknown columns {unknown}; known are {list(COLUMNS)}")
    frame = frame.reindex(columns=list(COLUMNS))
    frame = frame.astype(cast(Any, COLUMNS))
    for column, known in (("label", LABELS), ("modality", MODALITIES)):
        bad = sorted(set(frame[column].dropna()) - set(known))
        if bad:
            raise DataError(f"manifest column {column} holds {bad}; known are {list(known)}")
    if frame["image_id"].duplicated().any():
        twice = frame.loc[frame["image_id"].duplicated(), "image_id"].iloc[0]
        raise DataError(f"manifest names image {twice} twice: two files got the same identity")
    return frame.sort_values("image_id", ignore_index=True)
