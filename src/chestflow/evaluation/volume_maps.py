"""Where several networks looked in the same CT volumes: Grad-CAM beside trained attention (paper 004, Figures 5 and 6).

Figure 5 shows a COVID-19 volume of each infection-ratio group, Figure 6 volumes that every network answered falsely.
Each row is one axial slice, the same in all columns: that with the most lesion, else that with the most heat over all
runs.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from chestflow.config import Params
from chestflow.evaluation.cases import ratio_group, ratio_groups
from chestflow.evaluation.gallery import JPEG
from chestflow.evaluation.heatmap_grid import CELL, Cell, Grid, Maps
from chestflow.files import read_parquet
from chestflow.imaging.overlay import blend, volume_slice, window_uint8


def typical(cases: pd.DataFrame, cuts: list[float]) -> pd.DataFrame:
    """The middle COVID-19 case, in the order of image_id, of each ratio group that has one: neither answers nor maps
    decide what is shown.

    Args:
        cases: with ``image_id, target, ratio``; the highest target is the positive class.
        cuts: of the groups.
    """
    ill = cases[cases["target"] == cases["target"].max()].sort_values("image_id")
    groups = ill["ratio"].map(lambda r: ratio_group(r, cuts))
    parts = [ill[groups == group] for group in ratio_groups(cuts)]
    middle = [part.iloc[[(len(part) - 1) // 2]] for part in parts if len(part)]
    return pd.concat(middle or [ill[:0]]).assign(why="typical")


def failures(cases: pd.DataFrame, surest: np.ndarray, most: int) -> pd.DataFrame:
    """The cases that all networks answered falsely, the surest first.

    Args:
        cases: one row a case.
        surest: (N, R), each network's probability of the false side; above 0.5 is a false answer.
        most: how many.
    """
    wrong = np.asarray((surest > 0.5).all(axis=1))
    order = np.argsort(-surest.mean(axis=1), kind="stable")
    return cases.iloc[[i for i in order if wrong[i]][:most]].assign(why="false")


def _row(case: pd.Series, columns: list[Maps], classes: list[str]) -> tuple[str, list[Cell]]:
    image_id, truth = case["image_id"], classes[case["target"]]
    volume, lesion = columns[0].picture(image_id)
    heats = [column.heat(image_id, volume.shape) for column in columns]
    z = volume_slice(volume, np.asarray(sum(heats)), lesion)
    outline = None if lesion is None else lesion[z]
    plain = window_uint8(volume[z])
    cells = [_cell(blend(plain, None, outline, size=CELL), f"slice {z} of {len(volume)}, truth {truth}")]
    cells += [
        _cell(blend(plain, heat[z], outline, size=CELL), column.caption(image_id, classes[-1]))
        for column, heat in zip(columns, heats, strict=True)
    ]
    ratio = "" if np.isnan(case["ratio"]) else f", ratio {case['ratio']:.4f}"
    false = f", all answer falsely (fold {case['fold']})" if case["why"] == "false" else ""
    return f"{truth}{ratio}{columns[0].line(image_id)}{false}", cells


def _cell(picture: np.ndarray, caption: str) -> Cell:
    return Cell(cv2.imencode(".jpg", picture[..., ::-1], JPEG)[1].tobytes(), caption)


def _candidates(known: pd.DataFrame, columns: list[Maps], classes: list[str], most: int) -> pd.DataFrame:
    """The surest false answers of one fold's networks, with how sure they are on average in ``surest``."""
    shared = set.intersection(*(set(column.place) for column in columns))
    cases = known[known["image_id"].isin(shared)].assign(fold=columns[0].fold)
    if cases.empty:
        return cases.assign(why="false", surest=0.0)
    p = np.array([[column.probability(i, classes[-1]) for column in columns] for i in cases["image_id"]])
    ill = (cases["target"] == len(classes) - 1).to_numpy()[:, None]
    surest = np.where(ill, 1 - p, p)
    return failures(cases.assign(surest=surest.mean(axis=1)), surest, most)


def volume_grid(task: str, runs: list[str], params: Params, out: Path, *, false: int) -> Grid | None:
    """The maps of ``runs``, which share the task and the recipe; None where fewer than two have maps in all folds.

    The typical cases are of the first fold; the false answers are the surest of all folds, each with the maps of the
    networks that gave them.
    """
    classes = list(params.tasks[task].classes)
    folders = {run: [out / "predictions" / run / str(fold) for fold in params.folds] for run in runs}
    drawn = [run for run in runs if all((folder / "attention.npy").exists() for folder in folders[run])]
    if len(drawn) < 2:
        return None
    columns = {fold: [Maps(run, fold, params, out) for run in drawn] for fold in params.folds}
    # one row an image: where folds share test images, evaluate names the first of them
    known = read_parquet(out / "evaluate" / drawn[0] / "cases.parquet").reset_index(drop=True)
    first = params.folds[0]
    shared = set.intersection(*(set(column.place) for column in columns[first]))
    mine = known[(known["fold"] == first) & known["image_id"].isin(shared)]
    wrong = pd.concat([_candidates(known, columns[fold], classes, false) for fold in params.folds])
    wrong = wrong.sort_values(["surest", "fold", "image_id"], ascending=[False, True, True])
    wrong = wrong.drop_duplicates("image_id").head(false)
    chosen = pd.concat([typical(mine, params.evaluate.ratio_cuts), wrong], ignore_index=True)
    if chosen.empty:
        return None
    cases = [chosen.iloc[i] for i in range(len(chosen))]
    rows = [_row(case, columns[case["fold"]], classes) for case in cases]
    plain = [run for run in drawn if params.runs[run].config.get("attention") is False]
    note = f"Test volumes: of fold {first} the middle COVID-19 case of each ratio group in the order of ids"
    note += f", then of all folds up to {false} that every run answers falsely, the surest first." if false else "."
    if wrong.empty:
        note += " None was answered falsely by all."
    note += f" Grad-CAM: {', '.join(plain)}; the others show their trained attention." if plain else ""
    without = [run for run in runs if run not in drawn]
    return Grid(task, drawn, rows, note + (f" Without maps: {', '.join(without)}." if without else ""))


def volume_grids(params: Params, out: Path, *, false: int = 2) -> list[Grid]:
    """A grid for every task and recipe that two or more CT runs with maps share.

    Args:
        params: the checked parameters.
        out: the folder of outs, evaluations included.
        false: how many false answers are shown at most.
    """
    together: dict[tuple[str, str], list[str]] = {}
    for name, run in params.runs.items():
        if params.recipes[run.recipe].modality == "ct_volume":
            together.setdefault((run.task, run.recipe), []).append(name)
    found = (volume_grid(task, runs, params, out, false=false) for (task, _), runs in together.items())
    return [one for one in found if one is not None]
