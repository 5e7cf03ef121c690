"""Stage shortcuts: how much of the source, and of the class, can be told without looking at the lungs.

Where COVID-19 images come from one hospital and the others from another, a network may learn to tell the hospitals: by
the border, the markings, the exposure. Here a simple probe is asked for the source and for the class, out of fold, from
the picture and from parts of it. Nothing is evaluated of any network: the answers are about the data that a network
learns from. The structure of ``out/shortcuts/<task>.json`` is described in docs/evaluation.md.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.data.packing import Item
from chestflow.errors import DataError
from chestflow.evaluation.intervals import Value, cluster_weights, percentile_interval
from chestflow.evaluation.shortcut_probe import ABOUT, FOLDS, ask
from chestflow.evaluation.shortcut_views import VIEWS, read_views
from chestflow.files import read_parquet, write_json
from chestflow.parallel import ordered_map
from chestflow.segmentation import masks as mask_files
from chestflow.segmentation import places

#: Above this, whole groups are drawn until so many images are reached: the answers no longer change, the time does.
MOST_IMAGES = 4000
#: Balanced accuracy of guessing COVID-19 from the source from which on the two count as the same question.
CONFOUNDED = 0.95
#: Where sources with too few groups to be told apart go when the class is guessed from the source.
OTHER = "other"
#: Views asked for the source among images of one label.
WITHIN = ("image", "border", "box_removed")
Views = dict[str, NDArray[np.float32]]


def cohort_images(task: Any, out: Path) -> pd.DataFrame:
    """The images that networks of a task learn from and are tested on: ``image_id, path, group_id, source, label,
    target``, sorted by image. ``source`` is the site, or the set where the site is unknown; external sets, which no
    network learns from, have no part in it.

    Raises:
        DataError: there are none.
    """
    splits = read_parquet(out / "splits.parquet")
    mine = splits[(splits["cohort"] == task.cohort) & splits["role"].isin(("train", "tune", "test"))]
    mine = mine[["image_id", "group_id"]].drop_duplicates("image_id")
    manifest = read_parquet(out / "manifest.parquet")[["image_id", "path", "site", "source", "label"]]
    table = mine.merge(manifest, on="image_id", how="inner").sort_values("image_id", ignore_index=True)
    table["source"] = table["site"].astype(object).where(table["site"].notna(), table["source"]).astype(str)
    index = {label: i for i, labels in enumerate(task.classes.values()) for label in labels}
    table["target"] = table["label"].map(index)
    table = table[table["target"].notna()].astype({"target": "int64"}).reset_index(drop=True)
    if table.empty:
        raise DataError(f"cohort {task.cohort} has no image with a label of the task: check tasks in params.yaml")
    return table.drop(columns="site")


def drawn(table: pd.DataFrame, most: int, rng: np.random.Generator) -> pd.DataFrame:
    """Whole groups in random order until ``most`` images are reached; all of them where there are no more."""
    if len(table) <= most:
        return table
    sizes = table["group_id"].value_counts(sort=False).sort_index()
    sizes = sizes.iloc[rng.permutation(len(sizes))]
    kept = sizes.index[sizes.cumsum() <= most]
    return table[table["group_id"].isin(kept)].reset_index(drop=True)


def class_from_source(table: pd.DataFrame, positive: int, resamples: int, rng: np.random.Generator) -> Value:
    """Balanced accuracy of the best rule that tells COVID-19 from the source alone: 0.5 tells nothing, 1 everything.

    For each source the rule says what is commoner there, so it is half the sum over sources of the larger of its share
    of the positive and of the negative images. The rule is fitted on the images it is measured on.
    """
    codes, names = pd.factorize(table["source"], sort=True)
    y = (table["target"] == positive).to_numpy()
    cells = np.zeros((len(y), 2, len(names)))
    cells[np.arange(len(y)), y.astype(int), codes] = 1.0

    def rule(weights: NDArray) -> NDArray[np.float64]:
        counts = np.einsum("rn,nks->rks", weights, cells, optimize=True)
        totals = counts.sum(2, keepdims=True)
        shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
        found: NDArray[np.float64] = shares.max(1).sum(1) / 2
        return found

    value = float(rule(np.ones((1, len(y))))[0])
    replicates = rule(cluster_weights(table["group_id"].to_numpy(), resamples, rng))
    return percentile_interval(value, replicates, len(y), reason="one class only")


def _sources(table: pd.DataFrame, classes: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """A line for each source, and the names of those with enough groups to be told apart."""
    lines, enough = [], []
    for name, part in table.groupby("source", sort=True):
        groups = int(part["group_id"].nunique())
        counts = {c: int((part["target"] == i).sum()) for i, c in enumerate(classes)}
        lines.append({"source": name, "images": len(part), "groups": groups, "classes": counts})
        if groups >= FOLDS:
            enough.append(str(name))
    return lines, enough


def answers(table: pd.DataFrame, views: Views, classes: list[str], *, seed: int, resamples: int) -> dict[str, Any]:
    """Everything that the stage says, from the views of each image.

    Args:
        table: of :func:`cohort_images`.
        views: name -> (N, F) in the table's order, rows of NaN where an image has no such view.
        classes: the task's, the positive one last.
        seed: of folds and bootstrap.
        resamples: of the bootstrap.
    """
    lines, enough = _sources(table, classes)
    known = {name: ~np.isnan(x).any(axis=1) for name, x in views.items()}
    grouped = table.assign(source=table["source"].where(table["source"].isin(enough), OTHER))
    told = class_from_source(grouped, len(classes) - 1, resamples, np.random.default_rng(seed))
    strata = (table["source"] + "|" + table["label"]).to_numpy()

    def put(column: str, names: list[str], among: NDArray[np.bool_], wanted: tuple[str, ...]) -> dict[str, Any]:
        found = {}
        for view in wanted:
            rows = among & known[view]
            y = np.searchsorted(names, table[column].to_numpy()[rows]) if column == "source" else table["target"][rows]
            found[view] = ask(
                views[view][rows], np.asarray(y, dtype=np.int64), table["group_id"].to_numpy()[rows], strata[rows],
                names, seed=seed, resamples=resamples,
            )  # fmt: skip
        chance = {"auroc": 0.5, "macro_auroc": 0.5, "balanced_accuracy": 1 / len(names)}
        return {"defined": True, "reason": None, "among": names, "chance": chance, "views": found}

    def undefined(reason: str) -> dict[str, Any]:
        return {"defined": False, "reason": reason}

    everything = np.ones(len(table), dtype=bool)
    source = undefined("one source: nothing to tell apart")
    if len(lines) > 1:
        source = undefined(f"fewer than two sources have {FOLDS} groups")
        if len(enough) > 1:
            source = put("source", sorted(enough), table["source"].isin(enough).to_numpy(), VIEWS)
    within: dict[str, Any] = {}
    for label, part in table.groupby("label", sort=True):
        groups = part.groupby("source")["group_id"].nunique()
        names = sorted(groups.index[groups >= FOLDS])
        within[str(label)] = undefined("one source" if len(groups) == 1 else f"one source with {FOLDS} groups")
        if len(names) > 1:
            among = (table["label"] == label) & table["source"].isin(names)
            within[str(label)] = put("source", names, among.to_numpy(), WITHIN)
    confounded = len(lines) > 1 and bool(told.value >= CONFOUNDED)
    return {
        "images": len(table), "groups": int(table["group_id"].nunique()),
        "without_lungs": int((~known["lungs"]).sum()), "sources": lines,
        "sources_left_out": [line["source"] for line in lines if line["source"] not in enough],
        "class_from_source": told.json(), "confounded": confounded,
        "sentence": sentence(lines, told.value, confounded), "probe": ABOUT,
        "source": source, "source_within_label": within, "task_from": put("target", classes, everything, VIEWS),
    }  # fmt: skip


def sentence(lines: list[dict[str, Any]], told: float, confounded: bool) -> str:
    """What a reader must know before reading any figure."""
    if len(lines) == 1:
        return f"All images come from one source ({lines[0]['source']}): nothing says how a network does elsewhere."
    if not confounded:
        return f"Guessing COVID-19 from the source alone reaches a balanced accuracy of {told:.2f} (0.50 is chance)."
    how = "" if told >= 1 else "nearly "
    return (
        f"COVID-19 and the source {how}coincide: a network that tells the hospitals apart and one that tells the "
        "disease cannot be distinguished on these images, whatever the AUC."
    )


def unmeasured(task: str, recipe: str, reason: str) -> dict[str, Any]:
    """What stands in the file where nothing was measured."""
    return {"task": task, "recipe": recipe, "available": False, "reason": reason, "confounded": False}


def shortcuts(name: str, recipe_name: str, params: Any, out: Path, workers: int | None = None) -> None:
    """Measure one task's data; writes ``out/shortcuts/<task>.json``.

    Args:
        name: of the task.
        recipe_name: the recipe whose size and CLAHE the pictures are seen with; what it keeps is not regarded.
        params: the checked parameters (:class:`chestflow.config.Params`).
        out: the folder of outs: manifest, splits and masks are read from it.
        workers: processes; None takes one per core.

    Raises:
        DataError: one of these is missing, or an image cannot be read.
    """
    task, recipe, target = params.tasks[name], params.recipes[recipe_name], out / "shortcuts" / f"{name}.json"
    if recipe.modality == "ct_volume":
        write_json(target, unmeasured(name, recipe_name, "CT volumes are not evaluated for shortcuts"))
        return
    everyone, masks = cohort_images(task, out), places.masks(out, recipe.modality)
    table = drawn(everyone, MOST_IMAGES, np.random.default_rng(params.seed))
    items = [
        Item(row, image_id, path, mask_files.find(masks, image_id))
        for row, (image_id, path) in enumerate(zip(table["image_id"], table["path"], strict=True))
    ]
    seen = list(ordered_map(partial(read_views, recipe=recipe.model_dump()), items, workers))
    found = answers(table, stack(seen), list(task.classes), seed=params.seed, resamples=params.evaluate.bootstrap)
    about = {"task": name, "recipe": recipe_name, "available": True, "reason": None, "cohort_images": len(everyone)}
    write_json(target, {**about, **found})


def stack(seen: list[dict[str, NDArray[np.float32] | None]]) -> Views:
    """Views of single images as one array a view, with rows of NaN where an image has none."""
    views: Views = {}
    for name in VIEWS:
        width = next((len(found) for one in seen if (found := one[name]) is not None), 1)
        rows = [np.full(width, np.nan, np.float32) if one[name] is None else one[name] for one in seen]
        views[name] = np.stack(rows)  # type: ignore[arg-type]
    return views
