"""Where the stages infection and segment write: a folder for each modality, so that what depends on one modality's
masks is left alone when another's change.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chestflow.files import read_parquet

if TYPE_CHECKING:
    import pandas as pd

    from chestflow.config import Params

#: Modalities that have segmenters of infection.
INFECTED = ("ct_slice", "ct_volume")


def infected(params: Params) -> list[str]:
    """The modalities of params.yaml that have a stage ``infection@modality``."""
    return [modality for modality in params.modalities if modality in INFECTED]


def segmented(out: Path, modality: str) -> Path:
    """The outs of ``segment@<modality>``: masks/, ratio.parquet, and the X-rays' segmenter of lungs."""
    return out / "segment" / modality


def masks(out: Path, modality: str) -> Path:
    """The folder of a modality's mask files."""
    return segmented(out, modality) / "masks"


def ratios(out: Path, modality: str) -> pd.DataFrame:
    """A modality's ``ratio.parquet``, a row an image: whose masks are known, where they come from, and the ratio.

    Raises:
        DataError: the stage has not run.
    """
    return read_parquet(segmented(out, modality) / "ratio.parquet")


def infection(out: Path, modality: str) -> Path:
    """The outs of ``infection@<modality>``: the networks and their evidence."""
    return out / "infection" / modality
