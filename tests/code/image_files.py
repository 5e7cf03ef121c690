"""Small image files for tests: DICOM with identifying tags, series, NIfTI, and public sets' layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Values that must never leave ingest.
SECRETS = {
    "PatientID": "98C14734-ASSH",
    "PatientName": "Doe^Jane",
    "AccessionNumber": "ACC778899",
    "StudyDate": "20200305",
    "PatientBirthDate": "19491231",
    "InstitutionName": "Saint Elsewhere",
}


def write_dicom(path: Path, stored: NDArray, **tags: Any) -> Path:
    """A single-frame DICOM file; a tag given as None is left out."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    defaults: dict[str, Any] = {
        **SECRETS,
        "Modality": "DX",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "SamplesPerPixel": 1 if stored.ndim == 2 else 3,
        "PhotometricInterpretation": "MONOCHROME2" if stored.ndim == 2 else "RGB",
        "BitsAllocated": 8 * stored.dtype.itemsize,
        "BitsStored": 8 * stored.dtype.itemsize,
        "HighBit": 8 * stored.dtype.itemsize - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "StudyInstanceUID": "1.2.3.77",
        "SeriesInstanceUID": "1.2.3.88",
        "PatientSex": "F",
        "PatientAge": "070Y",
    }
    if stored.ndim == 3:
        defaults["PlanarConfiguration"] = 0
    for name, value in {**defaults, **tags}.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.PixelData = stored.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, hu: NDArray, step: float = 2.0, skip: tuple[int, ...] = (), **tags: Any) -> Path:
    """A CT series of ``hu`` (D, H, W), whose names and InstanceNumbers are out of order."""
    names = np.random.default_rng(1).permutation(len(hu))
    for place, plane in enumerate(hu):
        if place in skip:
            continue
        ct: dict[str, Any] = {
            "Modality": "CT",
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            "PixelSpacing": [0.7, 0.8],
            "ImagePositionPatient": [-10.0, -20.0, -300.0 + step * place],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "SliceLocation": -300.0 + step * place,
            "SliceThickness": 1.0,
            "InstanceNumber": int(names[place]) + 1,
        }
        name = f"{SECRETS['PatientID']}_{names[place]}.dcm"
        write_dicom(folder / name, (plane + 1024).astype(np.uint16), **{**ct, **tags})
    return folder


def chest(depth: int = 5, height: int = 12, width: int = 10) -> NDArray[np.int16]:
    """A volume in which each voxel has its own value and some are air."""
    hu = np.arange(depth * height * width, dtype=np.int16).reshape(depth, height, width) - 900
    return hu


def write_png(path: Path, pixels: NDArray) -> Path:
    """A PNG of uint8 or uint16 pixels."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def picture(seed: int, height: int = 40, width: int = 48) -> NDArray[np.uint8]:
    """A smooth random picture."""
    import cv2

    noise = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))


def darkcovid(root: Path, each: int = 4) -> Path:
    """DarkCovidNet's layout with a few pictures a class; NIH patients have two follow-ups."""
    folder = root / "X-Ray Image DataSet"
    for i in range(each):
        write_png(folder / "Covid-19" / f"case-{i}.png", picture(i))
        write_png(folder / "Pneumonia" / f"{i // 2:08d}_{i:03d}.png", picture(100 + i))
        write_png(folder / "No_findings" / f"{10 + i:08d}_000.png", picture(200 + i))
    return root


METADATA = "patientid,sex,age,finding,view,modality,filename,license,clinical_notes\n"


def cohen_metadata(path: Path, lines: list[str]) -> Path:
    """Cohen's table with the columns in use."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(METADATA + "".join(f"{line}\n" for line in lines))
    return path
