"""Stage report: one self-contained HTML page that opens without a server, and the comparison table beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chestflow.config import Params
from chestflow.data.phantom.layout import SETS as PHANTOMS
from chestflow.evaluation.comparison import DELONG, MCNEMAR, PAIRED_T, compare
from chestflow.evaluation.heatmap_grid import Grid, grids
from chestflow.evaluation.paper_tests import paper_tests
from chestflow.evaluation.report_data import Table, about_data
from chestflow.evaluation.report_infection import infection
from chestflow.evaluation.report_methods import about, picture, summary
from chestflow.evaluation.report_shortcuts import shortcuts
from chestflow.evaluation.report_taken import pretrainings, taus
from chestflow.evaluation.reproduction import untrained
from chestflow.evaluation.volume_maps import volume_grids
from chestflow.files import atomic_path, read_json
from chestflow.segmentation import places

TEMPLATES = Path(__file__).with_name("templates")


def _comparison(names: list[str], params: Params, out: Path) -> Table:
    table = Table(
        ["first", "second", "task", "images", "AUC, first minus second", "p (DeLong)", "only first right",
         "only second right", "p (McNemar)"],
        text=["first", "second", "task"],
    )  # fmt: skip
    if len(names) < 2:
        return table
    over_folds = len(params.folds) > 1
    tests = (DELONG, MCNEMAR, *((PAIRED_T,) if over_folds else ()))
    table.columns += ["p (paired t over folds)"] if over_folds else []
    found = compare(names, out, resamples=params.evaluate.bootstrap, seed=params.seed, tests=tests)
    for row in found.to_dict("records"):
        gap = {"value": row["delong"], "lo": row["delong_lo"], "hi": row["delong_hi"]}
        table.rows.append([
            row["first"], row["second"], row["task"], str(row["images"]), gap, row["delong_p"],
            str(row["only_first"]), str(row["only_second"]), row["mcnemar_p"],
            *([row["paired_t_p"]] if over_folds else []),
        ])  # fmt: skip
    table.note = "Paired, on the same test images; DeLong's test is clustered by patient. No correction for many pairs."
    if over_folds:
        table.note += " The t-test takes the folds' AUCs as independent, which their shared training images are not."
    return table


def _tests(params: Params, out: Path) -> Table:
    heads = ["paper", "paper's rows", "group", "printed p", "ours", "images", "AUC, first minus second", "p (DeLong)",
             "folds", "p (paired t over folds)"]  # fmt: skip
    table = Table(heads, text=heads[:5], title="The papers' significance tests")
    for row in paper_tests(params, out):
        rows, ours = f"{row['first']} – {row['second']}", " – ".join(row["ours"])
        table.rows.append([
            row["paper"], rows, row["group"] or "all", row["stated"], ours, str(row["images"]), row["difference"],
            row["delong_p"], str(row["folds"]), row["t_p"],
        ])  # fmt: skip
    table.note = (
        "A paper's t-tests are repeated over the folds of the AUC. Folds share training images, so they are not "
        "independent, and few of them say little; DeLong's test stands on the images."
    )
    return table


def _reproduction(found: dict[str, dict[str, Any]]) -> list[Table]:
    """A table a paper; why its figures and ours differ stands below, once for each reason."""
    heads = ["name", "paper's row", "as printed", "what it measures", "paper", "ours", "difference"]
    tables: dict[str, Table] = {}
    reasons: dict[str, dict[str, list[str]]] = {}
    for name, evidence in found.items():
        for row in evidence["reproduction"]:
            table = tables.setdefault(row["paper"], Table(heads, text=heads[:4], title=row["paper"]))
            where = ", ".join(str(part) for part in (row["row"], row["set"], row["group"]) if part is not None)
            printed = {"value": row["paper_value"], "lo": row["paper_lo"], "hi": row["paper_hi"]}
            value: Any = printed if row["paper_lo"] is not None else row["paper_value"]
            if row.get("paper_sd") is not None:
                value = f"{row['paper_value']:.3f} ± {row['paper_sd']:.3f}"
            cells = [value, _spread(row["ours"]), row["difference"]]
            table.rows.append([name, where, row["column"], row["means"], *cells])
            entries = reasons.setdefault(row["paper"], {}).setdefault(row["reason"], [])
            if name not in entries:
                entries.append(name)
    for paper, table in tables.items():
        why = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons[paper].items())
        table.note = f"Why they differ: {why}."
        if any(isinstance(row[5], str) for row in table.rows):
            table.note += " Figures with ± are means of the folds' networks, each by itself, with the sample deviation."
        if any(isinstance(row[4], dict) for row in table.rows):
            table.note += " Intervals beside the paper's figures are Wilson's, from the numbers of images it states."
    return list(tables.values())


def _spread(ours: dict[str, Any] | None) -> Any:
    """Ours as the table shows it: mean ± deviation where it is over folds."""
    if ours is None or ours.get("sd") is None:
        return ours
    return f"{ours['value']:.3f} ± {ours['sd']:.3f}"


def _untrained(params: Params) -> Table:
    heads = ["paper", "paper's row", "set", "as printed", "why there is none of ours"]
    table = Table(heads, text=heads, wrap=heads[3:])
    for row in untrained(params):
        for which, figures in row["figures"].items():
            printed = ", ".join(f"{column} {value:.3f}" for column, value in figures.items())
            if printed:
                table.rows.append([row["paper"], row["row"], which, printed, row["reason"]])
    return table


def _grid(found: Grid) -> dict[str, Any]:
    rows = [(truth, [picture(cell.content, cell.caption) for cell in cells]) for truth, cells in found.rows]
    return {"task": found.task, "runs": found.runs, "rows": rows, "note": found.note}


def _drawn(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A part of the page with its pictures as data addresses; None where there is no such part."""
    if part is None:
        return None
    return {**part, "plots": [picture(content, caption) for content, caption in part["plots"]]}


def page(params: Params, out: Path) -> str:
    """The page's HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    names = [*params.runs, *params.ensembles]
    data = about_data(out, params.folds)
    found = {name: read_json(out / "evaluate" / f"{name}.json") for name in names}
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    values: dict[str, Any] = {
        **data,
        "profile": params.profile,
        "folds": params.folds,
        "sets": params.data.sets,
        "phantom": not {source for e in found.values() for source in e["counts"]["sources"]}.isdisjoint(PHANTOMS),
        "summary": summary(found),
        "shortcuts": shortcuts(found),
        "infection": _drawn(infection(places.infected(params), out)),
        "taus": _drawn(taus(params, out)),
        "pretrainings": _drawn(pretrainings(params, out)),
        "runs": [about(name, params, out) for name in names],
        "grids": [_grid(found) for found in [*grids(params, out), *volume_grids(params, out)]],
        "comparison": _comparison(names, params, out),
        "reproduction": _reproduction(found),
        "tests": _tests(params, out),
        "untrained": _untrained(params),
    }
    return environment.get_template("report.html.j2").render(values)


def write(params: Params, out: Path) -> None:
    """Write ``out/report/index.html``.

    Args:
        params: the checked parameters.
        out: the folder of outs, evaluations included.

    Raises:
        DataError: an evaluation is missing.
    """
    html = page(params, out)
    with atomic_path(out / "report" / "index.html") as temporary:
        temporary.write_text(html)
