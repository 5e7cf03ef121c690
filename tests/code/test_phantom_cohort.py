"""Who is in the phantom cohort, before any voxel."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from chestflow.data.phantom import cohort
from chestflow.data.phantom.cohort import CT_RATIO, XRAY_RATIO, draw
from chestflow.errors import ConfigError

SEED = 5


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rows = [
        {
            "label": patient.label,
            "patient": patient.name,
            "site": patient.site.name,
            "sex": patient.sex,
            "age": patient.age,
            "studies": len(patient.studies),
            **{name: getattr(study, name) for name in ("ct_ratio", "xray_ratio", "inverted", "marker", "number")},
        }
        for patient in draw(200, SEED)
        for study in patient.studies
    ]
    return pd.DataFrame(rows)


def test_classes_are_large_enough_to_split(table: pd.DataFrame) -> None:
    patients = table.groupby("label")["patient"].nunique()
    assert patients["covid19"] >= 60
    assert patients["bacterial_pneumonia"] + patients["viral_pneumonia"] >= 60
    assert patients["normal"] >= 30
    assert patients.sum() == 200


def test_some_patients_of_each_class_return(table: pd.DataFrame) -> None:
    most = table.groupby("label")["studies"].max()
    assert (most >= 2).all()
    assert set(table["studies"]) == {1, 2, 3}


def test_covid_evolves_between_studies(table: pd.DataFrame) -> None:
    returning = table[(table["label"] == "covid19") & (table["studies"] > 1)]
    changes = returning.groupby("patient")["ct_ratio"].agg(lambda r: r.iloc[-1] / r.iloc[0])
    assert (changes > 1.2).mean() > 0.4
    assert (changes < 0.9).any()


def test_nothing_but_the_picture_tells_the_class(table: pd.DataFrame) -> None:
    patients = table.drop_duplicates("patient")
    sites = patients.groupby("label")["site"].value_counts(normalize=True).unstack()
    assert sites.to_numpy() == pytest.approx(0.5, abs=0.02)
    covid = patients["label"] == "covid19"
    for shares in (patients["sex"] == "F", table.drop_duplicates("patient", keep="first")["inverted"]):
        assert abs(shares[covid].mean() - shares[~covid].mean()) < 0.2
    assert abs(patients["age"][covid].mean() - patients["age"][~covid].mean()) < 6
    assert not table["marker"].any()


def test_ratios_fill_all_four_size_groups_of_paper_004(table: pd.DataFrame) -> None:
    covid = table.loc[table["label"] == "covid19", "ct_ratio"]
    cap = table.loc[table["label"].str.contains("pneumonia"), "ct_ratio"]
    assert (covid < 0.030).sum() >= 15
    assert (covid >= 0.030).sum() >= 40
    assert (cap <= 0.001).sum() >= 4
    assert (cap > 0.001).sum() >= 60


def test_each_modality_has_its_own_range_of_ratios(table: pd.DataFrame) -> None:
    infected = table[table["label"] != "normal"]
    assert infected["ct_ratio"].between(*CT_RATIO).all()
    assert infected["xray_ratio"].between(*XRAY_RATIO).all()
    # from one number: more on the CT is more on the X-ray
    assert infected["ct_ratio"].rank().corr(infected["xray_ratio"].rank()) == pytest.approx(1)
    assert (table.loc[table["label"] == "normal", ["ct_ratio", "xray_ratio"]] == 0).all(axis=None)


def test_xray_ratio_maps_the_ends_onto_the_ends() -> None:
    assert cohort.xray_ratio(CT_RATIO[0]) == pytest.approx(XRAY_RATIO[0])
    assert cohort.xray_ratio(CT_RATIO[1]) == pytest.approx(XRAY_RATIO[1])
    assert cohort.xray_ratio(0.0) == 0.0


def test_patients_do_not_depend_on_how_many_there_are() -> None:
    assert draw(20, SEED) == draw(60, SEED)[:20]


def test_another_seed_gives_other_patients() -> None:
    assert draw(12, SEED)[0] != draw(12, SEED + 1)[0]


def test_streams_are_independent_of_each_other() -> None:
    patient = draw(10, SEED)[0]
    assert patient.stream("body").random() == patient.stream("body").random()
    assert len({float(patient.stream(purpose).random()) for purpose in cohort.PURPOSES}) == len(cohort.PURPOSES)


def test_uids_are_fixed_valid_and_unique() -> None:
    people = draw(40, SEED)
    uids = [person.uid("xray", study.number) for person in people for study in person.studies]
    assert len(set(uids)) == len(uids)
    assert all(uid.startswith("2.25.") and len(uid) <= 64 and uid[5:].isdigit() for uid in uids)
    assert uids[0] == draw(40, SEED)[0].uid("xray", 1)


@pytest.mark.parametrize("shortcut", [0.5, 0.9, 1.0])
def test_a_planted_marker_tells_the_class_as_often_as_asked(shortcut: float) -> None:
    people = draw(400, SEED, shortcut)
    right = [study.marker == (person.label == "covid19") for person in people for study in person.studies]
    assert np.mean(right) == pytest.approx(shortcut, abs=0.07 if shortcut < 1 else 0)


def test_a_marker_changes_nothing_else() -> None:
    for plain, marked in zip(draw(20, SEED), draw(20, SEED, 1.0), strict=True):
        assert [(s.ct_ratio, s.inverted, s.exposure) for s in plain.studies] == [
            (s.ct_ratio, s.inverted, s.exposure) for s in marked.studies
        ]


@pytest.mark.parametrize(
    ("count", "seed", "shortcut", "says"),
    [(3, 1, 0.0, "--patients is 3"), (20, -1, 0.0, "--seed is -1"), (20, 1, 0.3, "--shortcut is 0.3")],
)
def test_impossible_cohorts_are_refused(count: int, seed: int, shortcut: float, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        draw(count, seed, shortcut)
