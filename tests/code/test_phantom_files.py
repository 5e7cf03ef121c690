"""The phantom's files: the same bytes every time, readable, without dates, with true masks, and small."""

from __future__ import annotations

import gzip
import hashlib
import inspect
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest

from chestflow.cli.phantom import phantom as command
from chestflow.data.phantom import generate, writing
from chestflow.data.phantom.cohort import draw
from chestflow.data.phantom.contact_sheet import draw_sheet
from chestflow.data.phantom.generate import FIRST_LINE, write_cohort
from chestflow.data.sources import base, phantom
from chestflow.errors import ConfigError, DataError
from chestflow.imaging.read import read_mask, read_radiograph, read_volume

SHAPE = (24, 32, 32)
COUNT = 30
#: sha256 of a compressed ramp
FROZEN = "dcf72da33cb02c431bc78921b5caf59865b7ed62d6e3c6c81ae9c000b6cefea3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "cohort"
    write_cohort(out, COUNT, 3, SHAPE, workers=1)
    return out


@pytest.fixture(scope="module")
def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "images.csv", keep_default_na=False)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_bytes_every_time_on_any_number_of_cores(folder: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "again", COUNT, 3, SHAPE, workers=2)
    assert digests(tmp_path / "again") == digests(folder)


def test_another_seed_gives_other_bytes(folder: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "other", 10, 4, SHAPE, workers=1)
    assert digests(tmp_path / "other")["xray/PH0001_1.dcm"] != digests(folder)["xray/PH0001_1.dcm"]


def test_bytes_are_those_of_the_pinned_versions() -> None:
    """The compressor's frozen digest: where it changes, every file of the cohort does, and data.dvc with them."""
    content = np.arange(4096, dtype=np.int16).reshape(16, 16, 16) // 3 * 8
    digest = hashlib.sha256(writing.gzip_bytes(content.tobytes()) + writing.zlib_bytes(content.tobytes()))
    assert digest.hexdigest() == FROZEN


def test_table_and_files_agree(folder: Path, table: pd.DataFrame) -> None:
    named = set(table["path"]) | set(table["lung_mask"]) | set(table["infection_mask"]) - {""}
    assert named | {"images.csv", "README.txt"} == set(digests(folder))
    assert (table["split"] == "").all()
    studies = table.groupby("study")["modality"].agg(["nunique", "size"])
    assert (studies["nunique"] == 3).all(), "every study has all three modalities"
    assert studies["size"].between(3, 5).all()


def test_volumes_read_back_in_the_bodys_frame(folder: Path, table: pd.DataFrame) -> None:
    row = table[(table["modality"] == "ct_volume") & (table["label"] == "covid19")].iloc[0]
    volume = read_volume(folder / row["path"])
    assert volume.hu.shape == SHAPE
    lung = read_mask([str(folder / row["lung_mask"])], volume.hu.shape)
    infection = read_mask([str(folder / row["infection_mask"])], volume.hu.shape)
    assert infection.sum() / lung.sum() == pytest.approx(row["ratio"], abs=1e-6)
    assert volume.hu[lung].mean() < -500
    site = draw(COUNT, 3)[0].site
    np.testing.assert_allclose(np.array(volume.spacing_mm) * SHAPE, site.extent_mm, rtol=1e-5)
    # the spine is at the back, dense, in the middle
    middle = volume.hu[:, :, SHAPE[2] // 2 - 2 : SHAPE[2] // 2 + 2]
    assert np.argwhere(middle > 150).mean(0)[1] > SHAPE[1] / 2
    # more of the left half's lung is displaced by the heart
    assert lung[:, :, : SHAPE[2] // 2].sum() > lung[:, :, SHAPE[2] // 2 :].sum()


def test_nifti_orientation_is_stated(folder: Path, table: pd.DataFrame) -> None:
    image = nibabel.load(folder / table.loc[table["modality"] == "ct_volume", "path"].iloc[0])
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.header.get_xyzt_units()[0] == "mm"


def test_xrays_are_16_bit_dicom_in_both_photometric_senses(folder: Path, table: pd.DataFrame) -> None:
    seen = set()
    for _, row in table[table["modality"] == "cxr"].iterrows():
        data = pydicom.dcmread(folder / row["path"])
        assert data.BitsAllocated == 16
        assert data.Modality == "DX"
        seen.add((data.PhotometricInterpretation, int(data.BitsStored)))
        picture = read_radiograph(folder / row["path"])
        lung = read_mask([str(folder / row["lung_mask"])], picture.pixels.shape)
        shown = picture.uint8().astype(float)
        middle = shown[shown.shape[0] // 2, int(shown.shape[1] * 0.42) : int(shown.shape[1] * 0.58)]
        assert shown[lung].mean() < middle.max(), "bright is dense in both senses"
    assert seen == {(sense, bits) for sense in ("MONOCHROME1", "MONOCHROME2") for bits in (12, 16)}


def test_no_dates_and_fixed_identifiers(folder: Path, table: pd.DataFrame) -> None:
    uids = set()
    for name in table.loc[table["modality"] == "cxr", "path"]:
        data = pydicom.dcmread(folder / name)
        dated = [element.keyword for element in data.iterall() if element.VR in ("DA", "TM", "DT") and element.value]
        assert dated == []
        assert "SYNTHETIC" in str(data.PatientName)
        uids.add(data.SOPInstanceUID)
    assert len(uids) == (table["modality"] == "cxr").sum()
    for name in table.loc[table["modality"] == "ct_volume", "path"]:
        assert (folder / name).read_bytes()[4:8] == bytes(4), "gzip's time stamp"


def test_pictures_read_back_and_masks_fit(folder: Path, table: pd.DataFrame) -> None:
    for _, row in table[table["modality"] == "ct_slice"].iterrows():
        picture = cv2.imread(str(folder / row["path"]), cv2.IMREAD_UNCHANGED)
        lung = cv2.imread(str(folder / row["lung_mask"]), cv2.IMREAD_UNCHANGED)
        assert picture.shape == lung.shape == SHAPE[1:]
        assert set(np.unique(lung)) == {0, 255}
        if row["infection_mask"]:
            infection = cv2.imread(str(folder / row["infection_mask"]), cv2.IMREAD_UNCHANGED) > 0
            assert infection.sum() / (lung > 0).sum() == pytest.approx(row["ratio"], abs=1e-6)


def test_infected_have_masks_and_healthy_have_none(table: pd.DataFrame) -> None:
    assert ((table["infection_mask"] != "") == (table["label"] != "normal")).all()
    assert (table["lung_mask"] != "").all()


def test_png_writer_agrees_with_a_reader(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (13, 17), dtype=np.uint8)
    writing.write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED), image)
    with pytest.raises(ValueError, match="expected"):
        writing.write_png(tmp_path / "b.png", image.astype(float))


def test_gzip_writer_agrees_with_a_reader() -> None:
    content = bytes(range(256)) * 50
    assert gzip.decompress(writing.gzip_bytes(content)) == content


def test_adapter_yields_every_row(folder: Path, table: pd.DataFrame) -> None:
    found = list(base.read_rows("phantom", folder))
    assert len(found) == len(table)
    assert all(isinstance(row, base.Row) for row in found)
    assert {row.modality for row in found if isinstance(row, base.Row)} == set(phantom.INFO.modalities)
    assert {row.label for row in found if isinstance(row, base.Row)} == set(phantom.INFO.classes)
    assert phantom.INFO.commercial_use is True
    assert phantom.INFO.licence == "CC0-1.0 synthetic"
    assert all(row.path.exists() for row in found if isinstance(row, base.Row))


def test_adapter_reports_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    write_cohort(out, 10, 3, SHAPE, workers=1)
    (out / "xray/PH0001_1.dcm").unlink()
    rejects = [row for row in base.read_rows("phantom", out) if isinstance(row, base.Reject)]
    assert [reject.key for reject in rejects] == ["xray/PH0001_1.dcm"]
    (out / "images.csv").write_text("path,label\n")
    with pytest.raises(DataError, match="lacks the columns"):
        list(base.read_rows("phantom", out))


def test_shortcut_is_planted_and_named(tmp_path: Path) -> None:
    table = write_cohort(tmp_path / "cohort", 20, 3, SHAPE, shortcut=1.0, workers=1)
    assert ((table["marker"] == 1) == (table["label"] == "covid19")).all()
    assert "100%" in (tmp_path / "cohort/README.txt").read_text()


def test_the_whole_cohort_stays_below_250_mb(tmp_path: Path) -> None:
    table = write_cohort(tmp_path / "cohort", 10, generate.SEED, generate.SHAPE, workers=1)
    each = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) / table["study"].nunique()
    studies = sum(len(patient.studies) for patient in draw(generate.PATIENTS, generate.SEED))
    assert each * studies < 150e6, "well below, since ten patients are a small sample"


@pytest.mark.parametrize(
    ("large", "cohort"),
    [
        (False, (Path("data/phantom"), generate.PATIENTS, generate.SEED, generate.SHAPE, 0)),
        (True, (Path("data/phantom_large"), generate.LARGE_PATIENTS, generate.LARGE_SEED, generate.SHAPE, 0)),
    ],
)
def test_the_commands_defaults_are_the_committed_cohorts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool, cohort: tuple[object, ...]
) -> None:
    asked = []

    def write(*given: object) -> pd.DataFrame:
        asked.append(given)
        return pd.DataFrame({"patient": ["p"], "modality": ["cxr"]})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "write_cohort", write)
    defaults = {name: value.default for name, value in inspect.signature(command).parameters.items()}
    command(**{**defaults, "large": large})
    assert asked == [cohort]


def test_a_grid_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="--grid"):
        command(Path("nowhere"), grid="48x96")


def test_another_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(DataError, match="not a phantom cohort"):
        write_cohort(tmp_path, 10, 3, SHAPE, workers=1)
    assert (tmp_path / "keep.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="--grid"):
        write_cohort(tmp_path / "new", 10, 3, (8, 32, 32))
    assert not (tmp_path / "new").exists()


def test_readme_says_what_it_is(folder: Path) -> None:
    text = (folder / "README.txt").read_text()
    assert text.startswith(FIRST_LINE)
    assert "SYNTHETIC" in text
    assert "CC0" in text


def test_contact_sheet_is_drawn_the_same_twice(folder: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_sheet(folder, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert cv2.imread(str(tmp_path / "a.png")).std() > 20
    with pytest.raises(DataError, match="holds no phantom cohort"):
        draw_sheet(tmp_path, tmp_path / "c.png")
