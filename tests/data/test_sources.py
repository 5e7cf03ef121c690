"""Adapters read their source's layout, and say clearly when a folder has another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chestflow.data.cohen_metadata import LABELS as FINDINGS
from chestflow.data.cohen_metadata import commercial_use, read_metadata
from chestflow.data.manifest import LABELS, MODALITIES
from chestflow.data.sources.base import Reject, Row, get, names, parse_mask_reference, read_rows, tables
from chestflow.errors import DataError
from chestflow.imaging.read import REASONS
from tests.code.image_files import chest, cohen_metadata, darkcovid, write_png, write_series

STRUCTURES = "#,Class,Filename,Image,Mask,Top,Left,Width,Height\n"


@pytest.mark.parametrize("name", names())
def test_every_adapter_describes_its_set(name: str) -> None:
    info = get(name).INFO
    assert info.name == name
    assert set(info.modalities) <= set(MODALITIES)
    assert set(info.classes) <= set(LABELS)
    assert set(info.published_counts) <= set(info.classes)
    assert info.licence
    assert info.link


@pytest.mark.parametrize("name", names())
def test_a_missing_folder_or_another_layout_says_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is missing: .*`chestflow data"):
        list(read_rows(name, tmp_path / name))
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="is not laid out like"):
        list(read_rows(name, tmp_path / name))


def test_an_unknown_set_names_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"no adapter reads the set 'base'; known are .*darkcovid"):
        get("base")


def test_darkcovid_takes_patients_from_names_and_from_cohens_table(tmp_path: Path) -> None:
    root = darkcovid(tmp_path / "darkcovid")
    cohen_metadata(root / "metadata.csv", ['P7,M,,"COVID-19, ARDS",AP Supine,X-ray,case-2.jpg,,'])
    rows = {row.key.split("/")[-1]: row for row in read_rows("darkcovid", root) if isinstance(row, Row)}
    assert len(rows) == 12
    assert rows["00000001_003.png"].patient == "00000001"
    assert rows["00000001_003.png"].patient_source == "nih"
    known, unknown = rows["case-2.png"], rows["case-1.png"]
    assert (known.patient, known.sex, known.age, known.view) == ("P7", "M", None, "AP Supine")
    assert (unknown.patient, unknown.label, unknown.site) == (None, "covid19", "cohen")


def test_another_table_in_the_place_of_cohens(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="lacks the columns patientid"):
        read_metadata(tmp_path / "metadata.csv")


def test_findings_map_to_the_vocabulary() -> None:
    assert set(FINDINGS.values()) <= set(LABELS)
    allowed = {"CC BY-NC-SA": False, "CC BY 4.0": True, "Apache 2.0": True, "": None, "listed as authorized": None}
    assert {licence: commercial_use(licence) for licence in allowed} == allowed


def test_cohen_seg_composes_masks_of_crops(tmp_path: Path) -> None:
    root = tmp_path / "cohen_seg"
    write_png(root / "images" / "a.png", np.zeros((20, 30), np.uint8))
    write_png(root / "images" / "b.png", np.zeros((20, 30), np.uint8))
    (root / "masks").mkdir()
    lines = [
        '1,"COVID-19 Right Lung",a.png,x.png,masks/r.png,2,3,5,6',
        '2,"COVID-19 Left Lung",a.png,x.png,masks/l.png,4,15,5,6',
        '3,"COVID-19 Consolidation",a.png,x.png,masks/c.png,5,4,2,2',
        '4,"COVID-19 Monitoring Probes",a.png,x.png,,0,0,9,9',
        '5,"COVID-19 Left Lung",b.png,x.png,masks/b.png,0,0,9,9',
        '6,"COVID-19 Left Lung",absent.png,x.png,masks/n.png,0,0,9,9',
    ]
    (root / "structure.csv").write_text(STRUCTURES + "".join(f"{line}\n" for line in lines))
    cohen_metadata(root / "metadata.csv", ["1,F,50,SARS,PA,X-ray,a.png,CC BY-NC-SA,", "2,M,60,todo,AP,X-ray,b.png,,"])
    a, rejected, b = sorted(read_rows("cohen_seg", root), key=lambda row: row.key)
    assert isinstance(a, Row)
    assert isinstance(b, Row)
    lungs = [parse_mask_reference(reference) for reference in a.lung_mask]
    assert lungs == [(root / "masks/r.png", (2, 3)), (root / "masks/l.png", (4, 15))]
    assert [parse_mask_reference(reference)[1] for reference in a.infection_mask] == [(5, 4)]
    assert (a.label, a.licence, a.commercial_use) == ("viral_pneumonia", "CC BY-NC-SA", False)
    # One lung alone is not both, a finding that says nothing is unknown, and no licence is said to be none.
    assert (b.lung_mask, b.label, b.licence, b.commercial_use) == ((), None, "none stated", None)
    assert isinstance(rejected, Reject)
    assert rejected.reason in REASONS


def test_covid_ct_md_has_a_row_per_series_folder(tmp_path: Path) -> None:
    root = tmp_path / "covid_ct_md"
    write_series(root / "COVID-19 subjects" / "P001", chest())
    write_series(root / "Cap subjects" / "cap001" / "first", chest())
    write_series(root / "Cap subjects" / "cap001" / "second", chest())
    (root / "Normal subjects").mkdir()
    rows = [row for row in read_rows("covid_ct_md", root) if isinstance(row, Row)]
    assert [(row.label, row.patient) for row in rows] == [("covid19", "P001"), ("cap", "cap001"), ("cap", "cap001")]
    assert len({row.key for row in rows}) == 3


@pytest.mark.parametrize("name", names())
def test_tables_are_described_by_their_columns(name: str) -> None:
    for file, table in tables(name).items():
        assert file.endswith(".txt" if table.columns else ".csv")
        assert table.image
        assert not table.columns or table.image in table.columns
