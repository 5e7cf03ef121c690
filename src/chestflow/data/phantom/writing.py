"""Files of the cohort: NIfTI, PNG and DICOM whose bytes depend on their content alone.

No dates, fixed identifiers, and one compressor: the deflate of the pinned pyarrow, since the interpreter's own zlib
differs from build to build and would give other bytes for the same pixels.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chestflow.data.phantom.cohort import Patient, Study
from chestflow.data.phantom.modalities import Xray
from chestflow.files import atomic_path

LEVEL = 6
IMPLEMENTATION_UID = "2.25.302043791173197713340466523518"
GZIP_HEADER, GZIP_TRAILER = 10, 8


def gzip_bytes(content: bytes) -> bytes:
    """A gzip stream without time stamp or name."""
    import pyarrow

    packed: bytes = pyarrow.Codec("gzip", compression_level=LEVEL).compress(content, asbytes=True)
    # time stamp and operating system are fields of the header; zero and "unknown" say nothing
    return packed[:4] + bytes(4) + packed[8:9] + b"\xff" + packed[GZIP_HEADER:]


def zlib_bytes(content: bytes) -> bytes:
    """The same deflate data in zlib's wrapping, which PNG asks for."""
    return b"\x78\x9c" + gzip_bytes(content)[GZIP_HEADER:-GZIP_TRAILER] + struct.pack(">I", zlib.adler32(content))


def write_nifti(path: Path, volume: NDArray, spacing_mm: tuple[float, float, float]) -> None:
    """Write (Z, Y, X) as .nii.gz.

    Args:
        volume: int16 or uint8; z towards the head, y towards the back, x towards the left.
        spacing_mm: (z, y, x).
    """
    import nibabel

    z, y, x = spacing_mm
    # NIfTI counts towards right, front and head as positive; the origin is the middle of the volume
    affine = np.diag([-x, -y, z, 1.0])
    size = np.array(volume.shape[::-1])
    affine[:3, 3] = -affine[:3, :3] @ ((size - 1) / 2)
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"SYNTHETIC chestflow phantom"
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip_bytes(image.to_bytes()))


def write_png(path: Path, image: NDArray) -> None:
    """Write (H, W) as 8-bit grey; bool becomes 0 and 255."""
    if image.ndim != 2 or image.dtype not in (np.bool_, np.uint8):
        raise ValueError(f"expected (H, W) bool or uint8, got {image.shape} {image.dtype}")
    pixels = image.astype(np.uint8) * 255 if image.dtype == np.bool_ else image
    height, width = pixels.shape
    rows = np.zeros((height, width + 1), dtype=np.uint8)  # a filter byte before each row; 0 is none
    rows[:, 1:] = pixels
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib_bytes(rows.tobytes())),
        (b"IEND", b""),
    )
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_dicom(path: Path, picture: Xray, patient: Patient, study: Study) -> None:
    """Write an X-ray as an uncompressed 16-bit DICOM file; inverted where the study says MONOCHROME1."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    top = 2**patient.site.bits - 1
    pixels = top - picture.pixels if study.inverted else picture.pixels
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 100"
    data.ImageType = ["DERIVED", "PRIMARY"]
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"  # Digital X-Ray Image Storage - For Presentation
    data.SOPInstanceUID = patient.uid("xray", study.number)
    data.StudyInstanceUID = patient.uid("study", study.number)
    data.SeriesInstanceUID = patient.uid("series", study.number)
    data.FrameOfReferenceUID = patient.uid("frame", study.number)
    data.Modality = "DX"
    data.PresentationIntentType = "FOR PRESENTATION"
    data.BodyPartExamined = "CHEST"
    data.InstitutionName = f"SYNTHETIC SITE {patient.site.name.upper()}"
    data.ImageComments = "SYNTHETIC phantom; not a person"
    data.PatientName = f"SYNTHETIC^{patient.name}"
    data.PatientID = patient.name
    data.PatientSex = patient.sex
    data.PatientAge = f"{patient.age:03d}Y"
    data.StudyID = str(study.number)
    data.SeriesNumber = data.InstanceNumber = 1
    data.ViewPosition = patient.site.view
    data.PatientOrientation = ["L", "F"]
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME1" if study.inverted else "MONOCHROME2"
    data.PresentationLUTShape = "INVERSE" if study.inverted else "IDENTITY"
    data.Rows, data.Columns = pixels.shape
    spacing = [f"{mm:.5f}" for mm in picture.spacing_mm]
    data.ImagerPixelSpacing = data.PixelSpacing = spacing
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, patient.site.bits, patient.site.bits - 1
    data.PixelRepresentation = 0
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "0", "1", "US"
    data.WindowCenter, data.WindowWidth = str((top + 1) // 2), str(top + 1)
    data.BurnedInAnnotation = "YES"
    data.PixelData = pixels.astype("<u2").tobytes()
    data["PixelData"].VR = "OW"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = data.SOPClassUID
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    meta.ImplementationVersionName = "CHESTFLOW_1"
    data.file_meta = meta
    with atomic_path(path) as temporary:
        data.save_as(temporary, enforce_file_format=True)
