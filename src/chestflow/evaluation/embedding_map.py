"""The test slices of a run as points, near each other where its network sees them alike (paper 003, figure 3).

t-SNE in two dimensions of the vector before the last layer, as training stored it for the test role. For a network with
a fusion that is the fusion's input, the pools of all branches together; the paper's "1644-dimensional features" of its
fusion contradict its own fusion, whose input has four pools (6656 values with DenseNet-169).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.config import Params
from chestflow.data.packs import Pack
from chestflow.evaluation.figures import ACCENT, INK, OTHER, SOFT
from chestflow.evaluation.localisation import rescale, upsample
from chestflow.evaluation.run_facts import attention_of
from chestflow.files import EMBEDDING_FILE, read_parquet
from chestflow.imaging.overlay import blend

PERPLEXITY = 30.0  # at most; a third of the points where there are few
FEWEST, MOST = 6, 600  # points that are drawn
COMPONENTS = 50  # principal ones that t-SNE is given
SHOWN, THUMB = 6, 96  # slices beside the map, and their side in pixels
COLOURS = (ACCENT, "#7a5195", SOFT, "#b8860b")  # of the classes but the last, which is COVID-19
INFECTION_BIT = 2


@dataclass
class EmbeddingMap:
    """PNG bytes, and what they show."""

    png: bytes
    caption: str


def project(vectors: NDArray, seed: int) -> NDArray[np.float64] | None:
    """Vectors (N, E) to (N, 2); None where there are too few of them, or nothing in which they differ.

    Principal components first, which also start t-SNE, so that the same vectors and seed give the same map.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    vectors = vectors.astype(np.float64)
    count = len(vectors)
    if count < FEWEST or vectors.shape[1] < 2 or not np.ptp(vectors, axis=0).any():
        return None
    with threadpool_limits(1):  # sums of several threads come in any order
        parts = PCA(min(COMPONENTS, count, vectors.shape[1]), svd_solver="full").fit_transform(vectors)
        perplexity = min(PERPLEXITY, (count - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed, method="exact", n_jobs=1)
        found: NDArray[np.float64] = tsne.fit_transform(parts).astype(np.float64)
    return found


def _evenly(count: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


def _points(run: str, fold: int, params: Params, out: Path) -> tuple[pd.DataFrame, NDArray] | None:
    """The test slices in the order of their ids (row in the files, target, p) and their vectors; None without any."""
    folder = out / "predictions" / run / str(fold)
    if not (folder / EMBEDDING_FILE).exists():
        return None
    positive = list(params.task_of(run).classes)[-1]
    answers = read_parquet(folder / "test.parquet").reset_index(names="place")
    answers = answers.assign(p=answers[f"p_{positive}"])[["place", "image_id", "p"]]
    cases = read_parquet(out / "evaluate" / run / "cases.parquet")
    cases = cases.loc[cases["fold"] == fold, ["image_id", "target"]]
    joined = answers.merge(cases, on="image_id").sort_values("image_id", ignore_index=True)
    joined = joined.iloc[_evenly(len(joined), MOST)].reset_index(drop=True)
    vectors = np.load(folder / EMBEDDING_FILE, mmap_mode="r")
    return joined, np.asarray(vectors[joined["place"].to_numpy()], np.float32)


def _strip(place: int, image_id: str, heats: NDArray | None, pack: Pack) -> NDArray[np.uint8]:
    """The slice, its map and its infected region side by side, RGB; black where one is not known."""
    images, masks = pack.gather(pack.rows_of([image_id]))
    image = images[0]
    parts = [blend(image, None, size=THUMB), np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1, 3), np.uint8)]
    if heats is not None:
        parts[1] = blend(image, rescale(upsample(np.asarray(heats[place], np.float32), image.shape)), size=THUMB)
    known = bool(pack.index.set_index("image_id").loc[image_id, "has_infection"])
    if masks is not None and known:
        infected = (masks[0] & INFECTION_BIT) > 0
        parts[2] = blend(np.where(infected, image, image // 4).astype(np.uint8), None, infected, size=THUMB)
    height, width = parts[0].shape[:2]
    whole = np.full((height, 3 * width + 8, 3), 255, np.uint8)
    for number, part in enumerate(parts):
        left = number * (width + 4)
        whole[:, left : left + width] = part  # one black pixel fills the place of what is not known
    return whole


def _draw(points: pd.DataFrame, xy: NDArray, shown: list[int], strips: list[NDArray], classes: list[str]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.9), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 4)
    axes = figure.add_subplot(grid[:, :2])
    axes.set_xticks([])
    axes.set_yticks([])
    for index, name in enumerate(classes):
        mine = points["target"].to_numpy() == index
        colour = OTHER if index == len(classes) - 1 else COLOURS[index % len(COLOURS)]
        label = f"{name} ({mine.sum()})"
        axes.scatter(xy[mine, 0], xy[mine, 1], s=14, color=colour, label=label, alpha=0.75, linewidths=0)
    for number, place in enumerate(shown, 1):
        x, y = xy[place]
        axes.scatter(x, y, s=90, facecolors="none", edgecolors=INK, linewidths=1)
        axes.annotate(str(number), (x, y), xytext=(6, 4), textcoords="offset points", fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False, loc="best")
    for number, (place, strip) in enumerate(zip(shown, strips, strict=True)):
        beside = figure.add_subplot(grid[number // 2, 2 + number % 2])
        beside.imshow(strip)
        beside.axis("off")
        truth = classes[int(points["target"].iloc[place])]
        beside.set_title(f"{number + 1}: {truth}, p {points['p'].iloc[place]:.2f}", fontsize=8, color=INK)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _about(run: str, fold: int, params: Params, width: int, points: pd.DataFrame) -> str:
    config: dict[str, Any] = params.runs[run].config
    vector = f"the {width} values before the last layer"
    if config.get("answers") == "fusion":
        vector = (
            f"the fusion's input: the pools of the global, the heat-map and both sides of the infected branch, {width}"
            " values together (the paper speaks of 1644, which no four pools have)"
        )
    folds, whose = params.folds, attention_of(run, params)
    alone = "" if len(folds) == 1 else f" alone, of {len(folds)} (each fold's network has vectors of its own)"
    return (
        f"t-SNE of {vector}. {len(points)} test slices of fold {fold}{alone}; p is the probability of COVID-19 before"
        " calibration. The numbered slices are taken evenly from the least to the most probable: slice, attention"
        f"{f' ({whose})' if whose else ''}, infected region (the source's or the segmenter's, as the run reads it)."
        " The axes have no unit, and how far apart groups lie means nothing."
    )


def embedding_map(run: str, params: Params, out: Path) -> EmbeddingMap | None:
    """The map of a run's first fold (each fold's network has a space of its own); None where nothing is stored.

    Args:
        run: a run's name; an ensemble has no vector of its own.
        params: the checked parameters.
        out: the folder of outs, evaluations included.
    """
    fold = params.folds[0]
    found = _points(run, fold, params, out) if run in params.runs else None
    if found is None:
        return None
    points, vectors = found
    xy = project(vectors, params.seed)
    if xy is None:
        return None
    order = points.sort_values(["p", "image_id"]).index.to_numpy()
    shown = [int(place) for place in order[_evenly(len(order), SHOWN)]]
    maps = out / "predictions" / run / str(fold) / "attention.npy"
    heats = np.load(maps, mmap_mode="r") if maps.exists() else None
    pack = Pack.open(out / "packs" / params.runs[run].recipe)
    strips = [_strip(int(points["place"].iloc[i]), points["image_id"].iloc[i], heats, pack) for i in shown]
    png = _draw(points, xy, shown, strips, list(params.task_of(run).classes))
    return EmbeddingMap(png, _about(run, fold, params, vectors.shape[1], points))
