"""Adapters and ingest on the public sets themselves, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestflow.config import Cohort, Task, Validation
from chestflow.data import confounding_rules
from chestflow.data.findings import Dataset
from chestflow.data.ingest import ingest
from chestflow.data.sources.base import Reject, Row, read_rows
from chestflow.imaging.read import read_classes, read_mask, read_radiograph, read_volume

FOLDERS = {
    "darkcovid": "darkcovid",
    "cohen_seg": "cohen-seg",
    "covid_ct": "covid-ct",
    "covid_ct_md": "covid-ct-md",
    "covid_semiseg": "covid-semiseg",
}


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


def test_covid_ct_counts_sides_and_patients(data: Path) -> None:
    found = rows(data, "covid_ct")
    assert not any(isinstance(row, Reject) for row in read_rows("covid_ct", data / "covid_ct"))
    table = pd.DataFrame([(r.label, r.official_split, r.patient) for r in found], columns=["label", "side", "patient"])
    # The copy holds train and val, which is its test.
    assert table.groupby(["label", "side"]).size().to_dict() == {
        ("covid19", "train"): 191,
        ("covid19", "test"): 60,
        ("non_covid", "train"): 234,
        ("non_covid", "test"): 58,
    }
    assert table["patient"].notna().all()
    assert table["patient"].nunique() == 289
    assert (table.groupby("patient")["side"].nunique() == 1).all()
    assert (table.groupby("patient")["label"].nunique() == 1).all()


def test_covid_ct_colour_modes(data: Path, tmp_path: Path) -> None:
    ingest("covid_ct", data / "covid_ct", tmp_path, id_key="key", workers=1)
    manifest, rejects = pd.read_parquet(tmp_path / "manifest.parquet"), pd.read_csv(tmp_path / "rejects.csv")
    assert (len(manifest), len(rejects)) == (543, 0)
    modes = manifest.groupby(["label", "color_mode"]).size()
    assert modes["covid19", "RGBA"] == 127
    assert "RGBA" not in modes["non_covid"]
    tasks = {"task": Task(cohort="slices", classes={"rest": ["non_covid"], "covid19": ["covid19"]})}
    cohorts = {"slices": Cohort(sets=["covid_ct"], modality="ct_slice")}
    dataset = Dataset(manifest, rejects, cohorts, tasks, Validation())
    told = {(figures["property"], figures["value"]) for _, _, figures in confounding_rules.value_of_one_class(dataset)}
    assert ("color_mode", "RGBA") in told
    assert min(manifest["width"].min(), manifest["height"].min()) == 61
    assert not any(b"Patient 1" in file.read_bytes() for file in tmp_path.iterdir())


def test_semiseg_classes_compose_the_binary_mask(data: Path) -> None:
    found = rows(data, "covid_semiseg")
    masked = [row for row in found if row.infection_mask]
    assert (len(masked), len(found)) == (50, 1650)
    free = [row for row in found if not row.infection_mask]
    assert len({row.study for row in free}) == 20
    assert len({(row.patient_source, row.patient) for row in free}) == 18  # two of Radiopaedia's cases gave two volumes
    assert all(row.patient is None for row in masked)
    values = set()
    for row in masked:
        shape = read_radiograph(row.path).pixels.shape
        binary = read_mask([row.path.parents[1] / "GT" / f"{row.path.stem}.png"], shape)
        classes = read_classes(row.infection_mask, shape)
        assert classes is not None
        assert ((classes > 0) == binary).all()
        assert binary.any()
        values |= set(np.unique(classes))
    assert values == {0, 1, 2}


def test_covid_ct_md_series(data: Path) -> None:
    found = rows(data, "covid_ct_md")
    assert {(row.label, row.patient) for row in found} == {
        ("covid19", "P001"),
        ("cap", "cap001"),
        ("normal", "normal001"),
    }
    assert all(row.infected_slices is None for row in found)  # the arrays of labels are not in this copy
