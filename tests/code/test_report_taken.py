"""The report's parts on infection masks, tau and pretrainings: there where the stages ran, with the papers' figures."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from chestflow.errors import DataError
from chestflow.evaluation.report import TEMPLATES, _drawn
from chestflow.evaluation.report_infection import CAVEAT, infection, plots
from chestflow.evaluation.report_taken import pretrainings, taus, why
from chestflow.files import write_json
from tests.code import taken_outs

PARAMS = taken_outs.params()
PNG = b"\x89PNG"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    taken_outs.write(tmp_path / "out")
    return tmp_path / "out"


def test_infection_figures_by_set_beside_the_published_ones(out: Path) -> None:
    said = taken_outs.write_infection(out)
    found = infection(["ct_slice"], out)
    assert found is not None
    by_title = {table.title: table for table in found["tables"]}
    figures = by_title["Held images, found against the sources' masks"]
    rows = {row[1]: row for row in figures.rows}
    assert list(rows) == ["covid_ct", "other", "all", "Inf-Net, published", "Semi-Inf-Net, published"]
    assert [row[2] for row in rows.values()] == ["4", "2", "6", "48", "48"]
    dice = figures.columns.index("Dice")
    assert rows["all"][dice] == said["figures"]["dice"]
    assert rows["covid_ct"][dice]["lo"] < rows["covid_ct"][dice]["value"] < rows["covid_ct"][dice]["hi"]
    assert rows["covid_ct"][dice]["value"] != rows["other"][dice]["value"]
    assert (rows["Inf-Net, published"][dice], rows["Semi-Inf-Net, published"][dice]) == (0.682, 0.739)
    assert CAVEAT in figures.note
    assert by_title["Healthy images"].rows == [["CT slices", "2", "2", "0.00000"]]
    (ratio,) = by_title["Infection ratio, found against true"].rows
    assert ratio[:2] == ["CT slices", "8"]
    assert ratio[2] == pytest.approx(0.05 * 6 / 8)
    rounds = by_title["Pseudo labels, round by round"].rows
    assert [row[:5] for row in rounds] == [
        ["final", "1", "4", "20", pytest.approx(0.65)], ["final", "2", "4", "24", pytest.approx(0.7)],
    ]  # fmt: skip
    assert [content[:4] for content, _ in found["plots"]] == [PNG, PNG]
    assert all(len(content) < 60_000 for content, _ in found["plots"])


def test_volumes_stand_beside_no_published_dice(out: Path) -> None:
    said = taken_outs.write_infection(out)
    write_json(out / "infection/ct_slice/evidence.json", {})
    one = {**said, "by_set": {"a": said["by_set"]["covid_ct"]}}
    write_json(out / "infection/ct_volume/evidence.json", one)
    found = infection(["ct_slice", "ct_volume"], out)
    assert found is not None
    figures = found["tables"][1]
    assert [row[:2] for row in figures.rows] == [["CT volumes", "a"]]
    assert CAVEAT not in figures.note
    assert found["plots"] == []


def test_rounds_without_held_slices_have_no_dice_curve() -> None:
    records = [{**row, "held": {"dice": None, "slices": 0.0}} for row in taken_outs.rounds()]
    assert [caption for _, caption in plots({"final": {"rounds": records}})] == ["Confidence by pixel"]
    assert plots({"final": {"rounds": []}}) == []


def test_nothing_is_shown_where_nothing_was_trained(out: Path) -> None:
    write_json(out / "infection/ct_slice/evidence.json", {})
    assert infection(["ct_slice"], out) is None
    (out / "infection/ct_slice/evidence.json").unlink()
    with pytest.raises(DataError, match=r"evidence\.json"):
        infection(["ct_slice"], out)
    plain = taken_outs.params(runs={"base": {"method": "baselines", "task": "t", "recipe": "small"}})
    assert taus(plain, out) is None
    assert pretrainings(plain, out) is None


def test_tau_in_use_the_papers_and_why(out: Path) -> None:
    found = taus(PARAMS, out)
    assert found is not None
    (row,) = found["table"].rows
    shown = dict(zip(found["table"].columns, row, strict=True))
    assert (shown["run"], shown["in use"], shown["tuned"], shown["paper's"]) == ("known", "0.75", "0.60", "0.75")
    assert (shown["its value"], shown["value of the paper's"], shown["trials"], shown["given up"]) == (
        0.9, 0.85, "3", "1",
    )  # fmt: skip
    assert shown["why"].endswith("+0.030 [-0.020, +0.080]: not above zero beyond doubt")
    ((content, caption),) = found["plots"]
    assert content.startswith(PNG)
    assert caption == "tau of known, fold 0: 0.75 in use"


def test_reasons_of_tau() -> None:
    assert why(taken_outs.tau("tuned")).endswith("above zero")
    same = taken_outs.tau()
    assert why({**same, "tuned": same["paper"]}) == "the paper's was the best of those tried"
    unknown = {"value": None, "lo": None, "hi": None}
    assert why({**same, "gain": unknown}) == "the gain of 0.60 cannot be measured"


def test_a_pretraining_that_a_run_starts_from(out: Path) -> None:
    found = pretrainings(PARAMS, out)
    assert found is not None
    (row,) = found["table"].rows
    assert row == ["moco", "resnet18", "2", "slices", "at random", "2", 5.5, 0.4, "base"]
    assert found["plots"][0][0].startswith(PNG)


def test_the_template_shows_each_part_once(out: Path) -> None:
    """The parts as the page has them, in its own macros."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    lists = ("folds", "sets", "warnings", "shortcuts", "runs", "grids", "reproduction")
    empty = blank_table()
    tables = ("summary", "flow", "roles", "rejects", "comparison", "tests", "untrained")
    values = {name: [] for name in lists} | dict.fromkeys(tables, empty)
    values |= {"profile": "toys", "phantom": False, "duplicates": ""}
    parts = {
        "infection": infection(["ct_slice"], out),
        "taus": taus(PARAMS, out),
        "pretrainings": pretrainings(PARAMS, out),
    }
    html = environment.get_template("report.html.j2").render(
        **values, **{name: _drawn(part) for name, part in parts.items()}
    )
    for anchor in ("infection", "tau", "pretraining"):
        assert html.count(f'<h2 id="{anchor}">') == html.count(f'href="#{anchor}"') == 1
    content = parts["taus"]["plots"][0][0]
    assert base64.b64encode(content).decode() in html
    assert "0.739" in html
    bare = environment.get_template("report.html.j2").render(**values, **dict.fromkeys(parts))
    assert "Infection masks" not in bare
    assert "tau" not in bare.split("<body>")[1].lower()


def blank_table() -> object:
    from chestflow.evaluation.report_data import Table

    return Table(["a"])
