"""An input example for a model's signature: a synthetic picture, so that no person's image is in it."""

from __future__ import annotations

import base64
import gzip

import cv2
import numpy as np
import pandas as pd


def example(modality: str) -> pd.DataFrame:
    """One row: a file's bytes in base64, and a name. The model abstains on it, since it shows no chest."""
    content, name = (_volume(), "example.nii.gz") if modality == "ct_volume" else (_picture(), "example.png")
    return pd.DataFrame({"image": [base64.b64encode(content).decode()], "filename": [name]})


def _picture() -> bytes:
    """A ramp of greys, 64 x 64, PNG."""
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8) * 2
    return bytes(cv2.imencode(".png", ramp)[1].tobytes())


def _volume() -> bytes:
    """A ball of water in air, 16 x 32 x 32, NIfTI."""
    import nibabel

    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (16, 32, 32)), indexing="ij")
    hu = np.where(z**2 + y**2 + x**2 < 0.8, 0, -1000).astype(np.int16)
    picture = nibabel.Nifti1Image(np.asfortranarray(hu.transpose(2, 1, 0)), np.diag([-5.0, -5.0, 5.0, 1.0]))
    return gzip.compress(picture.to_bytes(), mtime=0)
