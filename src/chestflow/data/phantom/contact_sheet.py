"""One picture of the cohort: per class, X-rays and CT slices with their true masks outlined, labelled synthetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.data.phantom.layout import TABLE
from chestflow.errors import DataError
from chestflow.files import atomic_path

CLASSES = ("normal", "bacterial_pneumonia", "viral_pneumonia", "covid19")
PER_CLASS = 3
WINDOW = (-1350.0, 150.0)
LUNG_COLOUR, INFECTION_COLOUR = "#4aa3df", "#e4572e"


def draw_sheet(folder: Path, path: Path) -> None:
    """Draw the contact sheet of a cohort.

    Args:
        folder: as `chestflow data phantom` writes it.
        path: PNG to write.

    Raises:
        DataError: the folder holds no cohort, or lacks a class.
    """
    if not (folder / TABLE).is_file():
        raise DataError(f"{folder} holds no phantom cohort: run `chestflow data phantom --out {folder}` first")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = pd.read_csv(folder / TABLE, dtype={"level": str}, keep_default_na=False)
    figure = Figure(figsize=(13.5, 6.9), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(CLASSES), 3 * PER_CLASS)
    for line, label in zip(axes, CLASSES, strict=True):
        studies = _choose(table, label)
        for number, study in enumerate(studies):
            for panel, (image, lung, infection, text) in zip(
                line[3 * number : 3 * number + 3], _panels(folder, table[table["study"] == study]), strict=True
            ):
                panel.imshow(image, cmap="gray", vmin=0, vmax=255)
                for mask, colour in ((lung, LUNG_COLOUR), (infection, INFECTION_COLOUR)):
                    if mask.any():
                        panel.contour(mask.astype(float), [0.5], colors=colour, linewidths=0.8)
                panel.set_title(text, color="white", fontsize=7)
        line[0].set_ylabel(label.replace("_", "\n"), color="white", fontsize=10)
    for panel in axes.ravel():
        panel.set(xticks=[], yticks=[])
        panel.set_facecolor("black")
    figure.suptitle(
        "SYNTHETIC: computed phantoms, not people. Three studies per class: X-ray, axial and coronal CT; "
        "outlines: lungs (blue), infection (red)",
        color="white",
        fontsize=11,
    )
    figure.subplots_adjust(left=0.045, right=0.995, top=0.91, bottom=0.01, wspace=0.04, hspace=0.1)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor="black", metadata={"Software": None})


def _choose(table: pd.DataFrame, label: str) -> list[str]:
    """Studies of different patients with a small, a middling and a large infection; of healthy ones the first."""
    rows = table[(table["modality"] == "ct_volume") & (table["label"] == label)].drop_duplicates("patient")
    if len(rows) < PER_CLASS:
        raise DataError(f"the cohort has {len(rows)} patients with {label}; a contact sheet needs {PER_CLASS}")
    rows = rows.sort_values(["ratio", "study"], kind="stable").reset_index(drop=True)
    places = (np.array([0.35, 0.7, 0.97]) * (len(rows) - 1)).astype(int)
    return [str(rows["study"][place]) for place in places]


def _panels(folder: Path, rows: pd.DataFrame) -> list[tuple[NDArray, NDArray, NDArray, str]]:
    """X-ray, axial and coronal CT of a study: picture, lungs, infection, and a line of text."""
    from chestflow.imaging.read import read_mask, read_radiograph, read_volume

    def masks(row: pd.Series, shape: tuple[int, ...]) -> tuple[NDArray, NDArray]:
        names = (row["lung_mask"], row["infection_mask"])
        lung, infection = (
            read_mask([str(folder / name)], shape) if name else np.zeros(shape, dtype=bool) for name in names
        )
        return lung, infection

    picture_row = rows[rows["modality"] == "cxr"].iloc[0]
    picture = read_radiograph(folder / picture_row["path"]).uint8()
    panels = [(picture, *masks(picture_row, picture.shape), f"X-ray, ratio {picture_row['ratio']:.3f}")]
    volume_row = rows[rows["modality"] == "ct_volume"].iloc[0]
    volume = read_volume(folder / volume_row["path"])
    lung, infection = masks(volume_row, volume.hu.shape)
    seen = infection if infection.any() else lung
    level, row = int(seen.sum((1, 2)).argmax()), int(seen.sum((0, 2)).argmax())
    low, high = WINDOW
    grey = np.rint(np.clip((volume.hu - low) / (high - low), 0, 1) * 255)
    panels.append((grey[level], lung[level], infection[level], f"CT axial, ratio {volume_row['ratio']:.4f}"))
    # coronal: head up, and slices as thick as they are
    stretch = max(1, round(volume.spacing_mm[0] / volume.spacing_mm[2]))
    plane, lung_plane, infection_plane = (
        np.repeat(part[::-1, row], stretch, axis=0) for part in (grey, lung, infection)
    )
    panels.append((plane, lung_plane, infection_plane, "CT coronal"))
    return panels
