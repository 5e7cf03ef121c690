"""The dual ensemble's weights from tuning to the page: exchanged values, and w by the ratio that a network finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from chestflow.config_segmentation import Segment
from chestflow.evaluation import cases as case_table
from chestflow.evaluation.as_served import as_served
from chestflow.evaluation.calibration import operating_points
from chestflow.evaluation.evaluate import evaluate
from chestflow.evaluation.evidence import members
from chestflow.evaluation.report_ensembles import as_served as shown
from chestflow.files import read_parquet, write_parquet
from chestflow.segmentation import found_ratio, places
from chestflow.segmentation import masks as mask_files
from chestflow.segmentation.infecting import Seen
from chestflow.segmentation.infection import InfectionSegmenter
from chestflow.segmentation.reading import Item
from chestflow.segmentation.run import segment
from chestflow.tracking import evidence as tracked
from chestflow.tuning import calibration, ensemble
from tests.code import infection_cases, study_outs
from tests.code.test_lungs import SPACING

CLASSES = ["cap", "covid19"]
STATED = {"w_extreme": 0.35, "w_middle": 0.96, "cut_low": 0.001, "cut_high": 0.03}
PARAMS = study_outs.params(tune={"trials": 4, "bootstrap": 20}, evaluate={"bootstrap": 50, "min_group": 10})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outs up to the calibration, with a network's ratio that lies on the other side of the high cut; some unknown."""
    folder = tmp_path_factory.mktemp("served")
    out = folder / "out"
    study_outs.write(out)
    file = places.segmented(out, "ct_volume") / "ratio.parquet"
    table = read_parquet(file)
    table["ratio_network"] = np.where(table["ratio"] > STATED["cut_high"], 0.01, 0.1)
    table.loc[table.index % 11 == 0, "ratio_network"] = np.nan
    write_parquet(file, table)
    for fold in PARAMS.folds:
        ensemble.tune_w("ds", fold, PARAMS, out, folder / "checkpoints")
        ensemble.apply_w("ds", fold, PARAMS, out)
        calibration.tune("ds", fold, PARAMS, out, folder / "checkpoints")
    return out


def answers(out: Path, name: str) -> pd.DataFrame:
    parts = [read_parquet(out / "predictions" / name / str(fold) / "test.parquet") for fold in PARAMS.folds]
    return pd.concat(parts).sort_values("image_id", ignore_index=True)


def by_hand(ratio: np.ndarray, extreme: float, middle: float) -> np.ndarray:
    w = [
        1.0 if np.isnan(r) else extreme if r < STATED["cut_low"] or r > STATED["cut_high"] else middle for r in ratio
    ]  # fmt: skip
    return np.array(w)


def test_exchanged_weights_from_tuning_to_the_members(made: Path) -> None:
    exchanged = {**STATED, "w_extreme": 0.96, "w_middle": 0.35}
    for fold in PARAMS.folds:
        found = json.loads((made / "tune" / "w" / "ds" / f"{fold}.json").read_text())
        assert {key: found["swapped"][key] for key in STATED} == exchanged
        assert {key: found["paper"][key] for key in STATED} == STATED
        first, second = (read_parquet(made / f"predictions/{run}/{fold}/tune.parquet") for run in ("ds_u", "ds_b"))
        ratio = places.ratios(made, "ct_volume").set_index("image_id")["ratio"].reindex(first["image_id"]).to_numpy()
        w = by_hand(ratio, 0.96, 0.35)
        mixed = (
            w * first["p_covid19"]
            + (1 - w) * second.set_index("image_id").loc[first["image_id"], "p_covid19"].to_numpy()
        )
        assert found["swapped"]["auroc"] == pytest.approx(roc_auc_score(first["target"], mixed))
    joined, uniform, balanced = (answers(made, name) for name in ("ds", "ds_u", "ds_b"))
    ratio = places.ratios(made, "ct_volume").set_index("image_id")["ratio"].reindex(joined["image_id"]).to_numpy()
    np.testing.assert_allclose(joined["w_swapped"], by_hand(ratio, 0.96, 0.35))
    np.testing.assert_allclose(joined["w_paper"], by_hand(ratio, 0.35, 0.96))
    cases = case_table.load("ds", PARAMS, made)
    said = members("ds", PARAMS, made, cases, CLASSES)
    assert said is not None
    y = cases.set_index("image_id").loc[joined["image_id"], "target"]
    auc = {}
    for which, values in (("swapped", (0.96, 0.35)), ("paper", (0.35, 0.96))):
        w = by_hand(ratio, *values)
        auc[which] = roc_auc_score(y, w * uniform["p_covid19"] + (1 - w) * balanced["p_covid19"])
        assert said[which]["auroc"]["value"] == pytest.approx(auc[which])
    assert auc["swapped"] != auc["paper"]
    assert said["swapped_minus_paper"]["auroc"]["value"] == pytest.approx(auc["swapped"] - auc["paper"])


def test_the_ensemble_is_measured_with_both_ratios(made: Path) -> None:
    evaluate("ds", PARAMS, made)
    evidence = json.loads((made / "evaluate" / "ds.json").read_text())
    found = evidence["as_served"]
    joined = answers(made, "ds")
    table = places.ratios(made, "ct_volume").set_index("image_id").reindex(joined["image_id"])
    assert found["images"] == len(joined)
    assert found["unknown"] == {
        "source": int(table["ratio"].isna().sum()), "network": int(table["ratio_network"].isna().sum())
    }  # fmt: skip
    assert found["other_w"] == int((~np.isclose(joined["w"], joined["w_network"])).sum()) > 0
    # with source masks they are the figures that all else of the page shows
    for figure in ("auroc", "sensitivity", "brier"):
        assert found["source"][figure]["value"] == pytest.approx(evidence["served"]["image"][figure]["value"], abs=1e-6)
    w, logits = [], []
    for fold in PARAMS.folds:
        tested = read_parquet(made / f"predictions/ds/{fold}/test.parquet").sort_values("image_id")
        used = json.loads((made / f"tune/w/ds/{fold}.json").read_text())["used"]
        w += list(ensemble.weight_of(table.loc[tested["image_id"], "ratio_network"].to_numpy(), used))
        np.testing.assert_allclose(tested["w_network"], w[-len(tested) :])
        u, b = (read_parquet(made / f"predictions/{run}/{fold}/test.parquet") for run in ("ds_u", "ds_b"))
        u, b = (part.set_index("image_id").loc[tested["image_id"], "p_covid19"].to_numpy() for part in (u, b))
        p = np.array(w[-len(tested) :]) * u + (1 - np.array(w[-len(tested) :])) * b
        _, point = operating_points(made / f"tune/calibration/ds/{fold}.json")
        scaled = pd.Series(np.log(p / (1 - p)) / point.temperature, index=tested["image_id"])
        logits.append(scaled)
    score = pd.concat(logits)
    y = case_table.load("ds", PARAMS, made).set_index("image_id")["target"].loc[score.index]
    assert found["network"]["auroc"]["value"] == pytest.approx(roc_auc_score(y, score))
    assert found["network"]["auroc"]["value"] != pytest.approx(found["source"]["auroc"]["value"], abs=1e-6)
    assert evidence["mlflow_metrics"]["as_served/auroc"] == pytest.approx(found["network"]["auroc"]["value"])
    both = tracked.as_served(evidence)
    assert both is not None
    assert [one.value for one in both] == [found[which]["auroc"]["value"] for which in ("source", "network")]
    page = shown(evidence, {"auroc": "AUC"})
    assert page is not None
    assert [row[:2] for row in page.rows] == [
        ["w from source masks", str(found["unknown"]["source"])],
        ["w from the network, as served", str(found["unknown"]["network"])],
    ]
    assert [row[2] for row in page.rows] == [found["source"]["auroc"], found["network"]["auroc"]]
    assert "did not see" in page.note


def test_without_a_segmenter_there_is_no_second_measurement(made: Path) -> None:
    cases = case_table.load("ds", PARAMS, made)
    assert as_served("ds", PARAMS, made, cases.drop(columns="w_network"), CLASSES) is None
    assert as_served("ds_u", PARAMS, made, cases, CLASSES) is None
    assert shown({"as_served": None}, {"auroc": "AUC"}) is None
    assert "w_network" not in read_parquet(made / "predictions/ds/0/tune.parquet")  # its ratios are not found twice


class Dense:
    """Stands for a trained segmenter: what is denser than aerated lung is ill."""

    def predict_volume(self, hu: np.ndarray, spacing: tuple[float, ...], lung: np.ndarray) -> np.ndarray:
        return lung & (hu > -700)

    def for_image(self, image_id: str) -> Dense:
        return self


def test_which_volumes_are_segmented_twice() -> None:
    items = [
        Item("a", "ct_volume", "a", (), ("mask",)), Item("b", "ct_volume", "b", (), ("mask",)),
        Item("c", "ct_volume", "c", (), ()), Item("d", "ct_slice", "d", (), ("mask",)),
    ]  # fmt: skip
    splits = pd.DataFrame({"image_id": ["a", "b", "a", "c", "d"], "role": ["train", "tune", "test", "test", "test"]})
    volumes = InfectionSegmenter({"ct_volume": object()})  # type: ignore[dict-item]
    assert [item.image_id for item in found_ratio.tested(items, splits, volumes)] == ["a"]
    assert found_ratio.tested(items, splits, InfectionSegmenter()) == []
    assert found_ratio.tested(items, splits, None) == []


class Network:
    """One network for volumes, by its threshold in HU; remembers what it was asked about."""

    threshold = 0.5

    def __init__(self, name: str, asked: list[str]) -> None:
        self.name, self.asked = name, asked

    def of_volume(self, hu: np.ndarray, spacing: tuple[float, ...], lung: np.ndarray) -> np.ndarray:
        self.asked.append(self.name)
        return (lung & (hu > -700)).astype(np.float32)


def test_the_stage_keeps_the_sources_masks_and_adds_an_unseeing_networks_ratio(tmp_path: Path) -> None:
    rows = infection_cases.volume_rows(tmp_path, 3)
    hu, _, _ = infection_cases.ct_volume(0)
    rows[0]["infection_mask"] = [infection_cases.write_nifti(tmp_path / "none.nii", np.zeros(hu.shape, np.uint8))]
    rows[2] |= {"infection_mask": None}
    manifest, splits, groups = infection_cases.tables(rows, {"v-000": "test"})
    asked: list[str] = []
    networks = [Network(name, asked) for name in ("final", "half-0", "half-1")]
    segmenter = InfectionSegmenter(
        {"ct_volume": networks[0]}, {"ct_volume": networks[1:]}, {"ct_volume": {"v-000": 1}}  # type: ignore[dict-item]
    )  # fmt: skip
    segment(
        "ct_volume", manifest, splits, groups, Segment(), tmp_path, seed=1, threads=1, workers=1, infection=segmenter
    )
    table = places.ratios(tmp_path, "ct_volume").set_index("image_id")
    assert sorted(asked) == ["final", "half-1"]  # v-002 has no mask; v-000 is tested; v-001 is asked by nobody
    assert table["infection_from"].to_dict() == {"v-000": "source", "v-001": "source", "v-002": "network"}
    assert table.loc["v-000", "ratio"] == 0  # the source's mask is empty, and stays what is trained and tuned on
    assert 0.005 < table.loc["v-000", "ratio_network"] < 0.5
    assert table.loc["v-001", "ratio"] > 0
    assert np.isnan(table.loc["v-001", "ratio_network"])
    assert table.loc["v-002", "ratio"] == pytest.approx(table.loc["v-002", "ratio_network"])
    bits = mask_files.read(mask_files.find(places.masks(tmp_path, "ct_volume"), "v-000"))  # type: ignore[arg-type]
    assert not (bits & mask_files.INFECTION).any()


def test_of_volumes_too_an_outline_is_kept_beside_the_networks_mask_and_is_no_lung(tmp_path: Path) -> None:
    rows = infection_cases.volume_rows(tmp_path, 3)
    hu, infection, _ = infection_cases.ct_volume(0)
    infection[:4, :4, :4] = True  # outside the body
    rows[0]["infection_mask"] = [infection_cases.write_nifti(tmp_path / "more.nii", infection.astype(np.uint8))]
    rows[1]["infection_mask"] = [infection_cases.write_nifti(tmp_path / "none.nii", np.zeros(hu.shape, np.uint8))]
    rows[2] |= {"infection_mask": None}
    manifest, splits, groups = infection_cases.tables(rows, {})
    segmenter = InfectionSegmenter({"ct_volume": Network("final", [])})  # type: ignore[dict-item]
    settings = Segment(infection_by_network=["ct_volume"])
    segment("ct_volume", manifest, splits, groups, settings, tmp_path, seed=1, workers=1, infection=segmenter)
    table = places.ratios(tmp_path, "ct_volume").set_index("image_id")
    assert set(table["infection_from"]) == {"network"}
    assert table["outlined"].to_dict() == {"v-000": True, "v-001": True, "v-002": False}
    folder = places.masks(tmp_path, "ct_volume")
    first, second, third = (mask_files.read(mask_files.find(folder, name)) for name in table.index)  # type: ignore[arg-type]
    assert np.array_equal((first & mask_files.OUTLINED) > 0, infection)
    assert not (second & mask_files.OUTLINED).any()
    assert not (third & mask_files.OUTLINED).any()
    assert not (first & (mask_files.LUNG | mask_files.INFECTION))[:4, :4, :4].any()
    assert all((bits & mask_files.INFECTION).any() for bits in (first, second, third))


def test_the_served_ratio_takes_no_lungs_of_the_source() -> None:
    hu, infection, lungs = infection_cases.ct_volume(3)
    item, segmenter = Item("a", "ct_volume", "a", ("lungs",), ("mask",)), Dense()
    thin = np.zeros_like(lungs)
    thin[10] = lungs[10]
    given = found_ratio.ratio_of(item, Seen(hu, SPACING, thin, "source"), thin, segmenter, Segment())  # type: ignore[arg-type]
    from chestflow.segmentation.lungs import segment_ct

    own = segment_ct(hu, SPACING, Segment().ct_lung_threshold_hu, Segment().ct_closing_mm, Segment().ct_convex_wall)
    marked = own & (hu > -700)
    assert given[found_ratio.COLUMN] == pytest.approx(marked.sum() / own.sum())
    seen = Seen(hu, SPACING, lungs, "threshold")
    cell = found_ratio.ratio_of(item, seen, infection, segmenter, Segment())  # type: ignore[arg-type]
    assert cell[found_ratio.COLUMN] == pytest.approx(infection.sum() / (lungs | infection).sum())
    nothing = found_ratio.ratio_of(item, Seen(hu, SPACING, None, "none"), None, segmenter, Segment())  # type: ignore[arg-type]
    assert np.isnan(nothing[found_ratio.COLUMN])
    flat = Seen(np.zeros((8, 8), np.uint8), None, None, "none")
    assert found_ratio.ratio_of(item, flat, None, segmenter, Segment()) == {}  # type: ignore[arg-type]
