"""Where several X-ray networks looked on the same test images, side by side: a row an image, a column a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from chestflow.config import Params
from chestflow.data.packs import Pack
from chestflow.evaluation.localisation import rescale, upsample
from chestflow.evaluation.truth import BOXES, Truth
from chestflow.files import read_parquet
from chestflow.imaging.overlay import blend

CELL = 144  # pixels, longest side


@dataclass
class Cell:
    """A picture, PNG or JPEG bytes, and what it shows."""

    content: bytes
    caption: str


@dataclass
class Grid:
    """The maps of one task's runs on one fold's test images.

    Attributes:
        task: the task's name.
        runs: the columns after the first, which holds the picture alone.
        rows: of each image, its truth and its cells: the picture, then one map a run.
        note: which fold, and which runs have no maps.
    """

    task: str
    runs: list[str]
    rows: list[tuple[str, list[Cell]]]
    note: str


def chosen(cases: pd.DataFrame, positives: int, others: int) -> pd.DataFrame:
    """Evenly spaced in the order of image_id, so that neither answers nor maps decide what is shown.

    Args:
        cases: with ``image_id, target``; the highest target is the positive class.
    """
    ordered = cases.sort_values("image_id")
    positive = ordered["target"] == ordered["target"].max()
    parts = []
    for part, most in ((ordered[positive], positives), (ordered[~positive], others)):
        evenly = np.linspace(0, len(part) - 1, min(most, len(part))).round().astype(int)
        parts.append(part.iloc[np.unique(evenly)])
    return pd.concat(parts)


def _cell(picture: np.ndarray, caption: str) -> Cell:
    return Cell(cv2.imencode(".png", picture[..., ::-1])[1].tobytes(), caption)


class Maps:
    """One run's maps and answers in one fold."""

    def __init__(self, run: str, fold: int, params: Params, out: Path) -> None:
        folder = out / "predictions" / run / str(fold)
        self.run, self.fold = run, fold
        self.pack = Pack.open(out / "packs" / params.runs[run].recipe)
        self.answers = read_parquet(folder / "test.parquet").reset_index(drop=True)
        self.place = {image: i for i, image in enumerate(self.answers["image_id"])}
        self.heats = np.load(folder / "attention.npy", mmap_mode="r")
        self.truth = Truth(self.pack, out)

    def picture(self, image_id: str) -> tuple[np.ndarray, np.ndarray | None]:
        """An image of the pack and its lesion, None where its source does not show it."""
        images, masks = self.pack.gather(self.pack.rows_of([image_id]))
        return images[0], self.truth.lesion(image_id, None if masks is None else masks[0])

    def line(self, image_id: str) -> str:
        """What a row adds about its outline: that it is a box, where it is."""
        return ", boxes" if self.truth.kind(image_id) == BOXES else ""

    def heat(self, image_id: str, shape: tuple[int, ...]) -> np.ndarray:
        """An image's map on its grid, in [0, 1]."""
        return rescale(upsample(np.asarray(self.heats[self.place[image_id]], np.float32), shape))

    def probability(self, image_id: str, positive: str) -> float:
        """Of the positive class, as the network said it."""
        return float(self.answers[f"p_{positive}"].iloc[self.place[image_id]])

    def caption(self, image_id: str, positive: str) -> str:
        return f"{self.run}: p = {self.probability(image_id, positive):.2f}"

    def cell(self, image_id: str, positive: str) -> Cell:
        image, lesion = self.picture(image_id)
        heat = self.heat(image_id, image.shape)
        return _cell(blend(image, heat, lesion, size=CELL), self.caption(image_id, positive))


def grid(task: str, runs: list[str], params: Params, out: Path, *, positives: int, others: int) -> Grid | None:
    """The maps of ``runs``, which share the task; None where fewer than two have maps."""
    fold = params.folds[0]
    drawn = [run for run in runs if (out / "predictions" / run / str(fold) / "attention.npy").exists()]
    if len(drawn) < 2:
        return None
    classes = list(params.tasks[task].classes)
    columns = [Maps(run, fold, params, out) for run in drawn]
    cases = read_parquet(out / "evaluate" / drawn[0] / "cases.parquet")
    shared = set.intersection(*(set(column.place) for column in columns))
    cases = cases[(cases["fold"] == fold) & cases["image_id"].isin(shared)]
    rows = []
    for image_id, target in chosen(cases, positives, others)[["image_id", "target"]].to_numpy().tolist():
        truth = classes[target]
        plain = _cell(blend(columns[0].picture(image_id)[0], None, size=CELL), f"picture, truth {truth}")
        rows.append(
            (truth + columns[0].line(image_id), [plain, *(column.cell(image_id, classes[-1]) for column in columns)])
        )
    without = [run for run in runs if run not in drawn]
    note = f"Test images of fold {fold}, taken evenly in the order of their ids."
    return Grid(task, drawn, rows, note + (f" Without maps: {', '.join(without)}." if without else ""))


def grids(params: Params, out: Path, *, positives: int = 3, others: int = 2) -> list[Grid]:
    """A grid for every task that two or more X-ray runs with maps share.

    Args:
        params: the checked parameters.
        out: the folder of outs, evaluations included.
        positives, others: how many COVID-19 and other images are shown at most.
    """
    by_task: dict[str, list[str]] = {}
    for name, run in params.runs.items():
        if params.recipes[run.recipe].modality == "cxr":
            by_task.setdefault(run.task, []).append(name)
    found = (grid(task, runs, params, out, positives=positives, others=others) for task, runs in by_task.items())
    return [one for one in found if one is not None]
