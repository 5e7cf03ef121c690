"""From predictions to evidence on a made-up cohort: tuning, ensemble, evaluation, comparison, the papers' rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestflow.errors import DataError
from chestflow.evaluation.comparison import compare
from chestflow.evaluation.evaluate import evaluate
from chestflow.evaluation.localisation import best_block_iou, cell_sums, iou
from chestflow.evaluation.reproduction import implied, paper_figures
from chestflow.segmentation import places
from chestflow.tuning import calibration, ensemble
from tests.code import study_outs

NAMES = ("ds_u", "ds_b", "ds")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ``out`` folder with everything that two runs, their ensemble and two folds give."""
    folder = tmp_path_factory.mktemp("evaluated")
    out, params = folder / "out", study_outs.params()
    study_outs.write(out)
    for fold in params.folds:
        ensemble.tune_w("ds", fold, params, out, folder / "checkpoints")
        ensemble.apply_w("ds", fold, params, out)
        for name in NAMES:
            calibration.tune(name, fold, params, out, folder / "checkpoints")
    for name in NAMES:
        evaluate(name, params, out)
    return out


@pytest.fixture
def evidence(made: Path) -> dict:
    return json.loads((made / "evaluate" / "ds.json").read_text())


def test_every_figure_is_inside_its_interval_or_says_why_it_has_none(evidence: dict) -> None:
    seen = 0

    def walk(value: object, where: str) -> None:
        nonlocal seen
        if isinstance(value, dict) and {"value", "lo", "hi", "reason"} <= value.keys():
            seen += 1
            if value["value"] is None:
                assert value["reason"], where
            elif value["lo"] is not None:
                assert value["lo"] - 1e-9 <= value["value"] <= value["hi"] + 1e-9, where
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{where}.{key}")
        elif isinstance(value, list):
            for inner in value:
                walk(inner, where)

    walk({k: v for k, v in evidence.items() if k != "reproduction"}, "")
    assert seen > 200


def test_confusion_counts_and_figures_tell_one_story(evidence: dict) -> None:
    for unit, total in (("image", evidence["counts"]["images"]), ("patient", evidence["counts"]["patients"])):
        (tn, fp), (fn, tp) = evidence["confusion"][unit]["raw"]
        assert tn + fp + fn + tp == total
        assert evidence["metrics"][unit]["sensitivity"]["value"] == pytest.approx(tp / (tp + fn))
        assert evidence["metrics"][unit]["accuracy"]["value"] == pytest.approx((tp + tn) / total)


def test_groups_and_sites_add_up_to_all_images(evidence: dict) -> None:
    for by in ("sex", "age", "site", "ratio"):
        assert sum(g["images"] for g in evidence["subgroups"] if g["by"] == by) == evidence["counts"]["images"]
    for site in evidence["sites_left_out"]:
        assert site["only"]["images"] + site["without"]["images"] == evidence["counts"]["images"]
    assert {s["site"] for s in evidence["sites_left_out"]} == {"phantom:A", "phantom:B"}
    ratio = evidence["ratio_only"]
    assert ratio["images"] + ratio["unknown"] == evidence["counts"]["images"]
    assert 0.5 < ratio["baseline"]["auroc"]["value"] < 0.8  # the made-up ratio knows a little


def test_two_runs_of_the_stage_write_the_same_bytes(made: Path, tmp_path: Path) -> None:
    again = tmp_path / "out"
    shutil.copytree(made, again)
    shutil.rmtree(again / "evaluate")
    evaluate("ds", study_outs.params(), again)
    for file in sorted((made / "evaluate" / "ds").iterdir()):
        assert file.read_bytes() == (again / "evaluate" / "ds" / file.name).read_bytes(), file.name
    assert (made / "evaluate" / "ds.json").read_bytes() == (again / "evaluate" / "ds.json").read_bytes()


def test_flat_figures_hold_no_undefined_number(evidence: dict) -> None:
    flat = evidence["mlflow_metrics"]
    assert {"test/auroc", "test/auroc_lo", "test/auroc_hi"} <= flat.keys()
    assert all(np.isfinite(v) for v in flat.values())


def test_members_of_the_ensemble_agree_with_their_own_evaluation(made: Path, evidence: dict) -> None:
    for part, name in (("uniform", "ds_u"), ("balanced", "ds_b")):
        alone = json.loads((made / "evaluate" / f"{name}.json").read_text())["metrics"]["image"]["auroc"]
        assert evidence["members"][part]["auroc"]["value"] == pytest.approx(alone["value"])


def test_an_ensemble_needs_no_calibration_of_its_members(made: Path, tmp_path: Path) -> None:
    """Nothing in the DAG makes it before an ensemble is evaluated."""
    out = tmp_path / "out"
    shutil.copytree(made, out)
    shutil.rmtree(out / "tune" / "calibration" / "ds_u")
    evaluate("ds", study_outs.params(), out)
    assert (out / "evaluate" / "ds.json").read_bytes() == (made / "evaluate" / "ds.json").read_bytes()


def test_the_ensemble_answers_with_the_uniform_network_where_the_ratio_is_unknown(made: Path) -> None:
    ratio = places.ratios(made, "ct_volume").set_index("image_id")["ratio"]
    for role in ("tune", "test"):
        joined, uniform, balanced = (
            pd.read_parquet(made / "predictions" / name / "0" / f"{role}.parquet") for name in ("ds", "ds_u", "ds_b")
        )
        unknown = ratio.reindex(joined["image_id"]).isna().to_numpy()
        assert unknown.any()
        p, u, b = (t["p_covid19"].to_numpy() for t in (joined, uniform, balanced))
        np.testing.assert_allclose(p[unknown], u[unknown])
        assert (p >= np.minimum(u, b) - 1e-9).all()
        assert (p <= np.maximum(u, b) + 1e-9).all()
        odds = joined["logit_covid19"] - joined["logit_cap"]
        np.testing.assert_allclose(1 / (1 + np.exp(-odds)), p, atol=1e-6)
    assert "target" not in pd.read_parquet(made / "predictions" / "ds" / "0" / "test.parquet")


def test_optuna_never_beats_the_exact_scans(made: Path) -> None:
    for fold in ("0", "1"):
        w = json.loads((made / "tune" / "w" / "ds" / f"{fold}.json").read_text())
        assert w["exact"]["gap"] >= -1e-9
        assert w["objective"] <= w["paper"]["log_loss"] + 1e-9
        assert w["used"] == ({k: w[k] for k in ensemble.KEYS} if w["use"] == "tuned" else
                             {k: w["paper"][k] for k in ensemble.KEYS})  # fmt: skip
        found = json.loads((made / "tune" / "calibration" / "ds" / f"{fold}.json").read_text())
        assert found["exact"]["criterion_gap"] >= -1e-9
        assert found["exact"]["log_loss_gap"] >= -1e-6
        assert found["objective"]["log_loss"] <= found["paper"]["log_loss"] + 1e-9
        assert len(found["trials"]) == 24  # twelve for each of the two studies


def test_pairs_are_compared_on_the_same_images_only(made: Path) -> None:
    table = compare(list(NAMES), made, resamples=100)
    assert list(zip(table["first"], table["second"], strict=True)) == [("ds_u", "ds_b"), ("ds_u", "ds"), ("ds_b", "ds")]
    alone = {n: json.loads((made / "evaluate" / f"{n}.json").read_text())["metrics"]["image"] for n in NAMES}
    for row in table.itertuples():
        want = alone[row.first]["auroc"]["value"] - alone[row.second]["auroc"]["value"]
        assert row.auroc == pytest.approx(want)
        assert row.delong == pytest.approx(want)
        assert row.auroc_lo <= row.auroc <= row.auroc_hi
        assert 0 <= row.delong_p <= 1


def test_fewer_images_in_one_run_leave_the_pair_out(made: Path, tmp_path: Path) -> None:
    for name, keep in (("a", slice(None)), ("b", slice(1, None))):
        (tmp_path / "evaluate" / name).mkdir(parents=True)
        cases = pd.read_parquet(made / "evaluate" / "ds_u" / "cases.parquet").iloc[keep]
        cases.to_parquet(tmp_path / "evaluate" / name / "cases.parquet")
    assert compare(["a", "b"], tmp_path).empty


def test_ours_stands_beside_the_papers_row_with_the_reason(evidence: dict) -> None:
    rows = [r for r in evidence["reproduction"] if r["set"] == "test" and r["group"] is None]
    assert {(r["column"], r["paper_value"]) for r in rows} >= {("auc", 0.944), ("f1", 0.820)}
    for row in rows:
        assert row["row"] == "Attention RN34+DS"
        assert "phantom" in row["reason"]
        assert row["difference"] == pytest.approx(row["ours"]["value"] - row["paper_value"])


def test_the_decoded_tables_hold_what_paper_002_cannot_mean() -> None:
    """Five of the eight rows of Tables II and III print an accuracy outside [sensitivity, specificity]."""
    table = paper_figures()["covidnet"]
    printed = [table["rows"][f"{letter}{n}"] for n in (3, 4) for letter in "ABCD"]
    outside = [r for r in printed if not min(r["sens"], r["spec"]) <= r["acc"] <= max(r["sens"], r["spec"])]
    assert len(outside) >= 5
    d4 = table["rows"]["D4"]
    meant = implied(d4["sens"], d4["spec"], 100, 3000)
    assert meant["implied_acc"] == pytest.approx(0.992, abs=5e-4)
    assert meant["implied_precision"] == pytest.approx(0.836, abs=2e-3)
    assert meant["implied_f1"] == pytest.approx(0.876, abs=2e-3)


def test_no_choice_of_cells_beats_the_exact_block_optimum() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((7, 8)) < 0.3
    cells = (2, 3)
    sums, _ = cell_sums(mask, cells)
    assert sums.sum() == mask.sum()
    row = ((np.arange(7) + 0.5) * 2 / 7).astype(int)
    column = ((np.arange(8) + 0.5) * 3 / 8).astype(int)
    cell = row[:, None] * 3 + column[None, :]
    subsets = ([c for c in range(6) if code >> c & 1] for code in range(1, 64))
    brute = max(iou(np.isin(cell, chosen), mask) for chosen in subsets)
    assert best_block_iou(mask, cells) == pytest.approx(brute)


def test_missing_inputs_are_named_in_one_line(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made, out)
    (out / "tune" / "calibration" / "ds_u" / "1.json").unlink()
    with pytest.raises(DataError, match="missing"):
        evaluate("ds_u", study_outs.params(), out)
    file = out / "predictions" / "ds_b" / "0" / "tune.parquet"
    pd.read_parquet(file).iloc[1:].to_parquet(file)
    with pytest.raises(DataError, match="different images"):
        ensemble.tune_w("ds", 0, study_outs.params(), out, tmp_path)


def test_tuning_on_one_class_is_refused(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made / "predictions", out / "predictions")
    file = out / "predictions" / "ds_u" / "0" / "tune.parquet"
    pd.read_parquet(file).assign(target=1).to_parquet(file)
    with pytest.raises(DataError, match="one class only"):
        calibration.tune("ds_u", 0, study_outs.params(), out, tmp_path)
