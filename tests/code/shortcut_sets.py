"""Made-up X-rays in which a source, a class or a shape is written in one place alone, and the answers about them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from chestflow.evaluation import shortcuts as stage
from chestflow.evaluation.shortcut_views import see

CLASSES = ["rest", "covid19"]
SIZE = 48


def lungs(square: bool = False) -> np.ndarray:
    """Two upright ellipses, or the rectangles around them: one box, two shapes."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    found = np.zeros((SIZE, SIZE), dtype=bool)
    for middle in (0.32, 0.68):
        down, right = np.abs(y - 0.5) / 0.3, np.abs(x - middle) / 0.14
        found |= (np.maximum(down, right) < 1) if square else (down**2 + right**2 < 1)
    return found


def cohort(
    count: int = 160, *, marked: bool = False, lesion: bool = False, shaped: bool = False, confounded: bool = False,
    sources: int = 2, seed: int = 0,
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:  # fmt: skip
    """Images in pairs of one group: noise with dark lungs, and what the source or the class writes into them.

    Args:
        marked: source ``b`` brightens a corner of the border.
        lesion: COVID-19 brightens a spot in the lungs.
        shaped: COVID-19's lung masks are rectangles in a picture that shows no lungs.
        confounded: the source is the class.
    """
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(count // 2), 2)
    target = np.repeat(rng.permutation(count // 2) % 2, 2)
    source = np.repeat(rng.permutation(count // 2) % sources, 2)
    source = target if confounded else source
    seen = []
    for y, site in zip(target, source, strict=True):
        pixels = rng.normal(120, 12, (SIZE, SIZE))
        lung = lungs(square=shaped and y == 1)
        if not shaped:
            pixels[lung] -= 60
        if marked and site == 1:
            pixels[1:4, 2:9] += 70
        if lesion and y == 1:
            row, column = rng.integers(18, 28), rng.choice([13, 14, 30, 31])
            pixels[row : row + 5, column : column + 4] += 50
        seen.append(see(np.clip(pixels, 0, 255).astype(np.uint8), lung, None))
    table = pd.DataFrame({
        "image_id": [f"x-{i:04d}" for i in range(count)], "group_id": [f"g-{g}" for g in group],
        "source": np.array(["a", "b", "c"])[source], "label": np.where(target == 1, "covid19", "normal"),
        "target": target,
    })  # fmt: skip
    return table, seen


def answer(table: pd.DataFrame, seen: list[dict[str, Any]], classes: list[str] = CLASSES) -> dict[str, Any]:
    return stage.answers(table, stage.stack(seen), classes, seed=1, resamples=100)


def auroc(part: dict[str, Any], view: str, figure: str = "macro_auroc") -> dict[str, float]:
    return part["views"][view][figure]


def chance(figure: dict[str, float]) -> bool:
    """Whether a figure is that of guessing, give or take what a hundred images allow."""
    return abs(figure["value"] - 0.5) < 0.14
