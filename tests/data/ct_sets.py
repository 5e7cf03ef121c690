"""Miniature copies of public CT sets in their own layouts, of synthetic pictures and volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.code.image_files import chest, picture, write_png


def nifti(path: Path, values: NDArray, affine: NDArray | None = None) -> Path:
    """``values`` (D, H, W) on our axes, stored x to the right, y to the front, z to the head."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    stored = values[:, ::-1, ::-1].transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([0.8, 0.7, 2.0, 1.0]) if affine is None else affine), path)
    return path


def jpeg(path: Path, pixels: NDArray) -> Path:
    """A JPEG, whatever the name's ending."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="JPEG", quality=95)
    return path


def palette(path: Path, classes: NDArray) -> Path:
    """A palette PNG whose indices are the classes, and whose colours are other numbers."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(classes.astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [0] * (3 * 252))
    image.save(path)
    return path


def rgba(pixels: NDArray) -> NDArray[np.uint8]:
    """The same picture in four channels."""
    return np.dstack([pixels, pixels, pixels, np.full_like(pixels, 255)])


def covid_ct(root: Path, each: int = 12, *, test: bool = True) -> Path:
    """COVID-CT's layout: COVID-19 in RGBA, one of them JPEG data under .png; ``%`` in the lists for ``_``."""
    parts = ("train", "val", "test") if test else ("train", "val")
    lists: dict[tuple[str, str], list[str]] = {}
    sheets = {"COVID": ["File name,Patient ID,Age,Gender"], "NonCOVID": [",image name,patient id"]}
    for shift, kind in ((0, "COVID"), (1000, "NonCOVID")):
        for i in range(each):
            name = f"2020.02.1{i // 10}-p{i % 10}_{i}.png" if kind == "COVID" else f"{i}_{i}.png"
            path = root / "Images-processed" / f"CT_{kind}" / name
            pixels = picture(shift + i)
            if kind == "COVID" and i == 0:
                jpeg(path, pixels)
            else:
                write_png(path, rgba(pixels) if kind == "COVID" else pixels)
            listed = name.replace("_", "%") if i % 2 else name
            lists.setdefault((kind, parts[i % len(parts)]), []).append(listed)
            if kind == "COVID":
                sheets[kind].append(f"{listed},Patient {i // 2},{'40+' if i else '41'},{'M' if i else ' f'}")
            else:
                sheets[kind].append(f"{i},{listed},crawled_patient_{i}")
    for (kind, part), names in lists.items():
        folder = root / "Data-split" / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{part}CT_{kind}.txt").write_text("".join(f"{name}\n" for name in names))
    for kind, lines in sheets.items():
        (root / f"{kind}-CT-MetaInfo.csv").write_text("".join(f"{line}\n" for line in lines))
    return root


def lesions(height: int = 40, width: int = 48) -> NDArray[np.uint8]:
    """Class 1 beside class 2, and class 3 below."""
    classes = np.zeros((height, width), np.uint8)
    classes[5:15, 5:15], classes[5:15, 15:25], classes[30:35, 5:15] = 1, 2, 3
    return classes


def grey_scan(folder: Path, depth: int = 4, skip: tuple[int, ...] = (), start: int = 0) -> Path:
    """8-bit slices numbered from the head down; the top one is the brightest."""
    for number in range(depth):
        if number not in skip:
            plane = np.full((12, 10), 200 - 40 * number, np.uint8)
            plane[:3, :3] = 0
            write_png(folder / f"{number + start:04d}.png", plane)
    return folder


def ct(shift: int = 0) -> NDArray[np.int16]:
    """A volume with air; another for another shift."""
    return (chest() + np.int16(shift)).astype(np.int16)
