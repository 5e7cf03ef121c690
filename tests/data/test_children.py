"""Children only among the negatives: said where a set's authors state the ages, wherever its pictures turn up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from chestflow.config import Cohort, Task, Validation, parse
from chestflow.data import pooling, splits, validation
from chestflow.data.confounding_rules import children_only_among_negatives, paediatric_sets
from chestflow.data.findings import Dataset
from chestflow.data.groups import group_images
from chestflow.data.ingest import ingest
from chestflow.data.manifest import conform
from chestflow.data.sources.base import Row, children_only, get, read_rows
from chestflow.profiles import complete, read

SETS = ["kermany", "darkcovid", "cohen_seg"]
TASK = Task(cohort="all", classes={"normal": ["normal"], "covid19": ["covid19"]})


def dataset(rows: list[tuple[str, str | None, str, float | None]]) -> Dataset:
    """Rows of (source, site, label, age) as one cohort and task."""
    frame = pd.DataFrame(rows, columns=["source", "site", "label", "age"])
    frame = frame.assign(image_id=[f"i{n:03d}" for n in range(len(frame))], modality="cxr")
    sets = sorted(set(frame["source"]))
    return Dataset(
        manifest=conform(frame),
        rejects=pd.DataFrame({"source": [], "image_id": []}),
        cohorts={"all": Cohort(sets=sets, modality="cxr")},
        tasks={"t": TASK},
        settings=Validation(),
        infos=validation.infos(sets),
    )


def test_the_ages_of_a_set_say_who_is_in_it() -> None:
    info = get("kermany").INFO
    assert children_only(info)
    assert not children_only(get("darkcovid").INFO)
    assert not children_only(replace(info, ages=(1.0, 18.0)))
    assert not children_only(replace(info, ages=None))
    assert "kermany" in paediatric_sets(dataset([("darkcovid", None, "covid19", None)]))


@pytest.mark.parametrize(
    ("negatives", "warned"),
    [
        ([("kermany", "kermany", "normal", None)] * 6, True),
        ([("radiography_db", "kermany", "normal", None)] * 6, True),  # taken from there by another set
        ([("nih", "nih", "normal", 9.0)] * 6, True),
        ([("nih", "nih", "normal", 40.0)] * 6, False),
        ([("nih", "nih", "normal", None)] * 6, False),
        ([("kermany", "kermany", "normal", None)] * 4, False),  # too few to matter
    ],
)
def test_children_only_among_the_negatives(negatives: list, warned: bool) -> None:
    positives = [("darkcovid", "cohen", "covid19", 50.0)] * 6
    child = [("cohen", "cohen", "covid19", 12.0)]
    found = list(children_only_among_negatives(dataset(positives + negatives)))
    assert bool(found) == warned
    if warned:
        assert found[0][2]["children"] == 6
        # One child with COVID-19 among sixty adults changes nothing; as large a share as among the others does.
        assert list(children_only_among_negatives(dataset(positives * 10 + child + negatives)))
        assert not list(children_only_among_negatives(dataset(positives + child * 4 + negatives)))


@pytest.fixture(scope="module")
def pooled(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sets of the four-class profile, ingested and pooled."""
    folder = tmp_path_factory.mktemp("real")
    for name in SETS:
        if not (realdata / name.replace("_", "-")).is_dir():
            pytest.skip(f"{name} is not among the real sets here")
        (folder / name).symlink_to(realdata / name.replace("_", "-"))
    for name in SETS:  # with all of them in place: Cohen's table gives darkcovid's ages
        ingest(name, folder / name, folder / "ingest" / name, id_key="key")
    pooling.pool(SETS, folder / "ingest", folder)
    return folder


def test_kermany_counts_and_patients(realdata: Path) -> None:
    if not (realdata / "kermany").is_dir():
        pytest.skip("kermany is not among the real sets here")
    rows = [row for row in read_rows("kermany", realdata / "kermany") if isinstance(row, Row)]
    table = pd.DataFrame({"label": [row.label for row in rows], "patient": [row.patient for row in rows]})
    assert table["label"].value_counts().to_dict() == {
        "bacterial_pneumonia": 486, "normal": 347, "viral_pneumonia": 308,
    }  # fmt: skip
    assert table.groupby("label")["patient"].nunique().sum() == table["patient"].nunique() == 836
    numbers = table["patient"].str.extract(r"^person(\d+)_")[0]
    assert numbers.dropna().nunique() < table.loc[numbers.notna(), "patient"].nunique()  # numbers count within a kind


@pytest.mark.slow
def test_identical_files_of_kermany_are_grouped(pooled: Path) -> None:
    manifest = pd.read_parquet(pooled / "manifest.parquet")
    kermany = manifest[manifest["source"] == "kermany"]
    assert len(kermany) == 1141
    sizes = kermany.groupby("sha256").size()
    assert (sizes > 1).sum() == 8
    groups = group_images(manifest).table.set_index("image_id")["group_id"]
    together = kermany.assign(group=kermany["image_id"].map(groups)).groupby("sha256")["group"].nunique()
    assert (together == 1).all()


@pytest.mark.slow
def test_the_four_class_cohort_warns_of_children_and_of_its_sources(pooled: Path, repository: Path) -> None:
    params = parse(complete(read("mag_sd_c_like", repository / "profiles")))
    validation.validate(params, pooled)
    report = pd.read_json(pooled / "validation.json", typ="series")
    rules = {finding["rule"]: finding for finding in report["warnings"]}
    assert not report["critical"]
    assert rules["children_only_among_negatives"]["figures"] == {
        "children": 1141, "by_set": 1141, "with_covid19": 1,
    }  # fmt: skip
    assert "class_in_one_source" in rules
    assert "identical_files" in rules
    table, about = splits.make_splits(
        pd.read_parquet(pooled / "manifest.parquet"), params.cohorts, params.split, seed=params.seed
    )
    counts = about["cohorts"]["c_like"]
    assert counts["images"] == 1141 + 95
    assert set(table["fold"]) == set(range(5))
