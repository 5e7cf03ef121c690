"""What the page says of its own figures: kinds of lesion, rounds of halves, means over folds, inputs, whose maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chestflow.evaluation import report_infection
from chestflow.evaluation.report import _reproduction
from chestflow.evaluation.report_methods import SHOWN, _deviations, _metrics, _whose
from chestflow.evaluation.reproduction import input_deviations, rows
from chestflow.evaluation.run_facts import attention_of
from chestflow.files import write_json
from chestflow.segmentation import places
from chestflow.tracking import attachments, taken
from tests.code import study_outs, taken_outs


def value(mean: float) -> dict[str, Any]:
    return {"value": mean, "lo": mean - 0.1, "hi": mean + 0.1, "n": 3, "reason": None}


def kinds() -> dict[str, Any]:
    """Evidence of a segmenter that tells ground glass from consolidation; HD95 is not defined for one of them."""
    figures = {key: value(0.7) for key in report_infection.SHOWN}
    return {
        "ground glass": {"images": 9, "patients": 7, "figures": {**figures, "dice": value(0.6)}},
        "consolidation": {"images": 4, "patients": 3, "figures": {**figures, "dice": value(0.4), "hd95": None}},
    }


def test_kinds_of_lesion_have_their_own_table(tmp_path: Path) -> None:
    said = taken_outs.write_infection(tmp_path)
    folder = places.infection(tmp_path, "ct_slice")
    write_json(folder / "evidence.json", said)
    bare = report_infection.infection(["ct_slice"], tmp_path)
    assert bare is not None
    assert "By kind of lesion" not in {table.title for table in bare["tables"]}
    write_json(folder / "evidence.json", {**said, "by_kind": kinds()})
    found = report_infection.infection(["ct_slice"], tmp_path)
    assert found is not None
    (table,) = [table for table in found["tables"] if table.title == "By kind of lesion"]
    assert [row[:4] for row in table.rows] == [
        ["CT slices", "consolidation", "4", "3"],
        ["CT slices", "ground glass", "9", "7"],
    ]
    assert [row[4]["value"] for row in table.rows] == [0.4, 0.6]
    assert table.columns[4] == "Dice"
    assert table.rows[0][-1] is None


class Client:
    """Takes files and keeps nothing."""

    def log_artifacts(self, run_id: str, folder: str, to: str) -> None:
        assert (Path(folder) / "evidence.json").exists()


def test_dice_by_kind_goes_to_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = taken_outs.write_infection(tmp_path)
    write_json(places.infection(tmp_path, "ct_slice") / "evidence.json", {**said, "by_kind": kinds()})
    logged: dict[str, float] = {}
    monkeypatch.setattr(attachments, "log_metrics", lambda client, run_id, values: logged.update(values))
    attachments.attach_infection(Client(), "r", tmp_path, "ct_slice")  # type: ignore[arg-type]
    assert logged["infection/ct_slice/ground_glass/dice"] == 0.6
    assert logged["infection/ct_slice/consolidation/dice_lo"] == pytest.approx(0.3)
    assert logged["infection/ct_slice/dice"] == pytest.approx(said["figures"]["dice"]["value"])
    assert taken.kind_figures(said) == {}


def test_rounds_of_halves_are_drawn_where_nobody_held_the_last_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    blind = [{**row, "held": {"dice": None, "slices": 0.0}} for row in taken_outs.rounds()]
    pseudo = {
        "final": {"rounds": blind}, "half-0": {"rounds": taken_outs.rounds()}, "half-1": {"rounds": taken_outs.rounds()}
    }  # fmt: skip
    asked: list[list[str]] = []
    draw = report_infection.stage_figures.rounds
    monkeypatch.setattr(
        report_infection.stage_figures, "rounds", lambda found, *rest: (asked.append(list(found)), draw(found, *rest))
    )
    found = report_infection.plots(pseudo)
    assert [caption for _, caption in found] == ["Dice on held slices", "Confidence by pixel"]
    assert asked == [["half-0", "half-1"]]
    assert all(content.startswith(b"\x89PNG") for content, _ in found)
    assert [caption for _, caption in report_infection.plots({"final": {"rounds": blind}})] == ["Confidence by pixel"]


def evaluation(folds: int) -> dict[str, Any]:
    """As evaluate leaves it of the attention network with uniform sampling, as far as the papers' rows need it."""
    names = ("auroc", "accuracy", "sensitivity", "specificity", "macro_f1")
    spread = {"mean": 0.8, "sd": 0.02 if folds > 1 else None, "folds": folds, "reason": None}
    groups = ("below 0.005", "0.005 to 0.03", "from 0.03")
    of_group = {
        "metrics": {name: value(0.7) for name in names},
        "across_folds": {n: {**spread, "mean": 0.6} for n in names},
    }
    return {
        "task": "covid_vs_cap", "classes": ["cap", "covid19"], "counts": {"sources": ["phantom"], "image": {}},
        "metrics": {"image": {name: value(0.9) for name in names}}, "per_class": {"image": {}},
        "across_folds": {"metrics": dict.fromkeys(names, spread)},
        "ratio_groups": [{"group": group, **of_group} for group in groups],
    }  # fmt: skip


def test_where_the_paper_prints_a_deviation_ours_is_a_mean_over_folds_too() -> None:
    params = study_outs.params()
    found = rows("ds_u", params, evaluation(5))
    whole = {(row["set"], row["column"]): row for row in found if row["group"] is None}
    pooled, over = whole["tv", "auc"], whole["test", "auc"]
    assert (pooled["ours"]["value"], pooled["paper_sd"]) == (0.9, None)
    assert (over["ours"]["value"], over["ours"]["sd"], over["ours"]["folds"], over["paper_sd"]) == (0.8, 0.02, 5, 0.003)
    assert over["difference"] == pytest.approx(0.8 - 0.948)
    groups = {(row["set"], row["column"]): row["ours"]["value"] for row in found if row["group"] == "below 0.005"}
    assert (groups["tv", "auc"], groups["test", "auc"]) == (0.7, 0.6)
    (table,) = _reproduction({"ds_u": {"reproduction": found}})
    cells = {row[1]: row[4:6] for row in table.rows if row[2] == "auc"}
    assert cells["Attention RN34+US, test"] == ["0.948 ± 0.003", "0.800 ± 0.020"]
    assert cells["Attention RN34+US, tv"][1] == value(0.9)
    assert "sample deviation" in table.note


def test_one_fold_has_no_deviation_and_its_own_figure_stays() -> None:
    found = rows("ds_u", study_outs.params(folds=1), evaluation(1))
    (over,) = [r for r in found if (r["set"], r["column"], r["group"]) == ("test", "auc", None)]
    assert over["ours"] == value(0.9)
    (table,) = _reproduction({"ds_u": {"reproduction": found}})
    assert "sample deviation" not in table.note


def test_a_smaller_input_than_the_papers_is_a_deviation() -> None:
    params = study_outs.params()
    found = {row["name"]: (row["value"], row["paper"]) for row in input_deviations("ds_u", params)}
    assert found["recipe.size"] == ([8, 16, 16], [138, 256, 256])
    assert found["recipe.spacing_mm"] == ([1.0, 1.0, 1.0], [1.25, 0.7168, 0.7168])
    assert "recipe.max_downscale" not in found  # it is the paper's
    table = _deviations("ds", params)
    shown = [row for row in table.rows if row[1] == "recipe.size"]
    assert [row[0] for row in shown] == ["ds_u", "ds_b"]
    assert all("138" in row[3] and "recipe small" in row[4] for row in shown)
    assert input_deviations("base", taken_outs.params()) == []  # a plain network of no paper of ours


def multi(**config: Any) -> Any:
    run = {"method": "multi_knowledge", "task": "t", "recipe": "small"}
    runs = {"own": {**run, "config": {"tau": 0.5, "backbone": "resnet18", "channels": 1, **config}}}
    return taken_outs.params(runs=runs, pretraining={})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"answers": "fusion"}, "Grad-CAM of the global branch"),
        ({"answers": "infected"}, "Grad-CAM of the global branch"),
        ({"answers": "heat", "heat_concat": True}, "Grad-CAM of the global branch"),
        ({"answers": "heat"}, "heat map"),
    ],
)
def test_whose_map_a_network_of_several_branches_shows(config: dict[str, Any], said: str) -> None:
    params = multi(**config)
    assert said in attention_of("own", params)
    assert said in _whose("own", "own", params)
    assert attention_of("base", taken_outs.params()) == ""
    assert _whose("base", "base", taken_outs.params()) == ""
    assert _whose("ds_u", "ds", study_outs.params()) == "Maps are those of ds_u."


def test_both_f1s_are_shown() -> None:
    figures = {"f1": value(0.8), "f1_negative": value(0.7)}
    views = {view: {"image": figures, "patient": figures} for view in ("metrics", "tuned", "served")}
    table = _metrics({"classes": ["rest", "covid19"], **views})
    assert [row[:2] for row in table.rows] == [
        ["F1 of COVID-19", value(0.8)],
        [SHOWN["f1_negative"], value(0.7)],
    ]
