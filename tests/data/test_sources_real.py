"""Adapters and ingest on the public sets themselves, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from chestflow.data.ingest import ingest
from chestflow.data.sources.base import Row, read_rows
from chestflow.imaging.read import read_mask, read_volume

FOLDERS = {"darkcovid": "darkcovid", "cohen_seg": "cohen-seg", "covid_ct_md": "covid-ct-md"}


@pytest.fixture(scope="module")
def data(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the sets under our names."""
    folder = tmp_path_factory.mktemp("data")
    for name, source in FOLDERS.items():
        if not (realdata / source).is_dir():
            pytest.skip(f"{source} is not among the real sets here")
        (folder / name).symlink_to(realdata / source)
    return folder


def rows(data: Path, name: str) -> list[Row]:
    return [row for row in read_rows(name, data / name) if isinstance(row, Row)]


def test_darkcovid_counts_and_patients(data: Path) -> None:
    found = rows(data, "darkcovid")
    table = pd.DataFrame({"label": [r.label for r in found], "patient": [(r.patient_source, r.patient) for r in found]})
    assert table["label"].value_counts().to_dict() == {"pneumonia": 417, "normal": 390, "covid19": 95}
    assert all(row.patient is not None for row in found)
    assert table[table["label"] == "covid19"]["patient"].nunique() == 69
    nih = table[table["label"] != "covid19"].groupby("patient")["label"].nunique()
    assert (nih > 1).sum() == 17  # patients with both other classes


def test_cohen_seg_joins_masks_and_findings(data: Path) -> None:
    found = rows(data, "cohen_seg")
    assert len(found) == 44
    assert all(len(row.lung_mask) == 2 for row in found)
    assert sum(row.label == "covid19" for row in found) == 26
    assert sum(row.commercial_use is False for row in found) == 22
    assert sum(row.licence == "none stated" for row in found) == 20
    shared = {row.patient for row in rows(data, "darkcovid") if row.patient_source == "cohen"}
    assert sum(row.patient in shared for row in found) == 23


def test_ingest_of_cohen_seg(data: Path, tmp_path: Path) -> None:
    ingest("cohen_seg", data / "cohen_seg", tmp_path, id_key="key", patients=8, workers=1)
    manifest, rejects = pd.read_parquet(tmp_path / "manifest.parquet"), pd.read_csv(tmp_path / "rejects.csv")
    assert manifest["patient_id"].nunique() == pytest.approx(8, abs=2)
    assert set(rejects["reason"]) == {"missing_file"}
    for row in manifest.head(5).itertuples():
        shape = (int(row.height), int(row.width))
        lung, lesion = read_mask(row.lung_mask, shape), read_mask(row.infection_mask, shape)
        assert 0.1 < lung.mean() < 0.7
        assert (lesion & lung).sum() > 0.6 * lesion.sum()


def test_ingest_of_a_jpeg_lossless_series(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import pydicom

    ingest("covid_ct_md", data / "covid_ct_md", tmp_path, id_key="key", workers=1)
    manifest = pd.read_parquet(tmp_path / "manifest.parquet")
    assert manifest["label"].value_counts().to_dict() == {"cap": 1, "normal": 1, "covid19": 1}
    assert [spacing[0] for spacing in manifest["spacing_mm"]] == [8.0, 8.0, 8.0]  # SliceThickness says 2
    path = Path(manifest["path"].iloc[0])
    volume = read_volume(path)
    assert volume.hu.shape == (manifest["depth"].iloc[0], 512, 512)
    assert volume.hu.min() >= -2048
    # Fewer voxels are air at the shoulders than at the level of the heart; the head end is last.
    air = [(plane[128:384, 128:384] < -500).mean() for plane in (volume.hu[len(volume.hu) // 2], volume.hu[-1])]
    assert air[0] > air[1]
    told = capfd.readouterr()
    raw = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    header = pydicom.dcmread(next(path.glob("*.dcm")), stop_before_pixels=True)
    for tag in ("PatientID", "AccessionNumber", "StudyDate", "SeriesInstanceUID", "StudyInstanceUID"):
        value = str(header.get(tag) or "")
        if value:
            assert value.encode() not in raw
            assert value not in told.out + told.err
