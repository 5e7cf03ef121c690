"""What ``full_size_ct.py`` measures on: a phantom as a DICOM series, training volumes in memory, an untrained model.

Untrained weights take as long as trained ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

RECIPE = {"name": "full", "modality": "ct_volume", "spacing_mm": [1.25, 0.7168, 0.7168], "max_downscale": 0.5}
CLASSES = ("cap", "covid19")
RUNS = {"uniform": "attention_us", "balanced": "attention_ss"}
COARSEST = (48, 96, 96)  # voxels at which a phantom's lungs are told from what lies around them


def write_series(folder: Path, slices: int, plane: int) -> None:
    """A phantom with COVID-19 as a DICOM series of ``slices`` x ``plane`` x ``plane`` voxels.

    Computed at a quarter of the size a side, though not below :data:`COARSEST`, and enlarged, since its fields are
    float64; the scanner's noise is drawn at full size.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    from chestflow.data.phantom import anatomy, modalities
    from chestflow.data.phantom.cohort import draw
    from chestflow.data.phantom.grid import Grid
    from chestflow.data.recipes import resample

    patient = next(one for one in draw(20, seed=0) if one.label == "covid19" and one.studies[-1].ct_ratio > 0.02)
    asked = (slices, plane, plane)
    coarse = [max(least, side // 4) for least, side in zip(COARSEST, asked, strict=True)]
    grid = Grid((2 * coarse[0], coarse[1], coarse[2]), patient.site.extent_mm)
    study = patient.studies[-1]
    hu = resample(modalities.ct(patient, study, anatomy.build(patient, study, grid)).hu, asked)
    spacing = [mm / side for mm, side in zip(patient.site.extent_mm, hu.shape, strict=True)]
    rng = np.random.default_rng(0)
    for place, values in enumerate(hu):
        noisy = values + rng.normal(0, patient.site.ct_noise_hu, values.shape)
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = f"2.25.{place + 1}"
        path = folder / f"{place:04d}.dcm"
        file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        file.Modality, file.SeriesInstanceUID, file.StudyInstanceUID = "CT", "2.25.1000", "2.25.1001"
        file.Rows, file.Columns, file.SamplesPerPixel = plane, plane, 1
        file.PhotometricInterpretation, file.PixelRepresentation = "MONOCHROME2", 0
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
        file.RescaleSlope, file.RescaleIntercept = 1, -1024
        file.PixelSpacing = [round(mm, 6) for mm in spacing[1:]]
        file.ImagePositionPatient = [0.0, 0.0, round(spacing[0] * place, 4)]
        file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        file.InstanceNumber = place + 1
        file.PixelData = np.clip(noisy + 1024, 0, 4095).astype(np.uint16).tobytes()
        file.save_as(path, enforce_file_format=True)


@dataclass
class Mixed:
    """Stands for a pack of ``count`` volumes, COVID-19 at odd rows and CAP at even ones, all with both masks.

    Only one volume of each class is kept in memory.
    """

    size: tuple[int, int, int]
    count: int
    index: pd.DataFrame = field(init=False)
    data: NDArray[np.int16] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.index = pd.DataFrame({"row": range(self.count), "has_lung": True, "has_infection": True})
        self.data = rng.integers(-1000, 100, (2, *self.size), dtype=np.int16)
        infected = rng.random((2, *self.size), dtype=np.float32) < 0.05
        self.masks = (1 + 2 * infected).astype(np.uint8)

    @property
    def table(self) -> pd.DataFrame:
        """Row, class and ratio, as training takes them."""
        rows = np.arange(self.count)
        return pd.DataFrame({"row": rows, "target": rows % 2, "ratio": 0.05})

    def gather(self, rows: Any, /) -> tuple[NDArray, NDArray[np.uint8]]:
        """Volumes (B, D, H, W) in HU and the bits of their masks."""
        which = np.asarray(rows) % 2
        return self.data[which], self.masks[which]


def write_model(folder: Path, network: dict[str, Any], size: list[int], segmenter: Any) -> None:
    """A served model as it is registered: the two dual-sampling networks and the segmenter of infection.

    Args:
        folder: the bundle's.
        network: the config of the networks.
        size: (D, H, W) of their input.
        segmenter: the :class:`~chestflow.segmentation.infection.Segmenter` of volumes.
    """
    import torch
    from safetensors.torch import save_file

    from chestflow.files import write_json
    from chestflow.methods import registry
    from chestflow.segmentation import infection
    from chestflow.serving import bundle
    from chestflow.training.restore import save_network

    method = registry.get("dual_sampling")
    config = registry.configure(method, network)
    spec = registry.InputSpec("ct_volume", tuple(size), CLASSES)
    members = tuple(bundle.Member(run, 0, part) for part, run in RUNS.items())
    for seed, member in enumerate(members):
        torch.manual_seed(seed)
        place = folder / member.folder
        place.mkdir(parents=True)
        built: Any = method.build(config, spec)
        described = {"method": method.name, "config": registry.completed(method, network), "input": asdict(spec)}
        save_network(place, built, described)
        width = built.backbone.out_channels
        # nothing is unusual: the distance's scale is that of no training
        known = {"mean": torch.zeros(width), "precision": torch.eye(width), "threshold": torch.tensor(1e30)}
        save_file(known, place / "embedding.safetensors")
    (folder / bundle.INFECTION).mkdir()
    infection.save(infection.InfectionSegmenter({"ct_volume": segmenter}), folder / bundle.INFECTION)
    served = bundle.Bundle(
        name="dual_sampling",
        profile="full_size_ct",
        task="covid_vs_cap",
        modality="ct_volume",
        classes=CLASSES,
        recipe={**RECIPE, "size": list(size)},
        members=members,
        weighting=bundle.Weighting(0.35, 0.96, 0.001, 0.030),
        temperature=1.0,
        threshold=0.5,
        segmentation={"ct_lung_threshold_hu": -320.0, "ct_closing_mm": 8.0, "ct_convex_wall": True},
        phantom=True,
        licences=(),
        commercial_use="unstated",
        reads_infection=True,
    )
    write_json(folder / bundle.FILE, asdict(served))
