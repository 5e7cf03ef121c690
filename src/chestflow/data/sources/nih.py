"""NIH ChestX-ray14: 112,120 frontal X-rays with findings mined from reports, and boxes drawn on some.

Layout: ``Data_Entry_2017.csv`` or ``Data_Entry_2017_v2020.csv``, ``BBox_List_2017.csv``, ``train_val_list.txt``,
``test_list.txt``, and pictures ``<patient>_<follow-up>.png`` in ``images/`` or in ``images_001/images/`` and on; read
from ``mlmed/torchxrayvision: torchxrayvision/datasets.py`` (NIH_Dataset, which also names the columns of the box table,
whose own header falls apart at its commas). Only boxes of pneumonia are taken: here a box is where the infection lies.
The pixel spacing in the table is that of the original, larger picture, and is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from chestflow.data.source_tables import read_lines
from chestflow.data.sources.base import Box, Reject, Row, SourceInfo, Table, require
from chestflow.errors import DataError

INFO = SourceInfo(
    name="nih",
    title="NIH ChestX-ray14",
    modalities=("cxr",),
    classes=("normal", "pneumonia", "non_covid"),
    # As public counts of Data_Entry_2017.csv have them, labelled as here; all images are from before 2020.
    published_counts={"normal": 60361, "pneumonia": 1431, "non_covid": 50328},
    licence="unrestricted use, the source to be named",
    commercial_use=True,
    link="https://nihcc.app.box.com/v/ChestXray-NIHCC",
)
ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
BOXES = "BBox_List_2017.csv"
SPLITS = {"train_val_list.txt": "train", "test_list.txt": "test"}
TABLES = {
    **{name: Table("Image Index") for name in (*ENTRIES, BOXES)},
    **{name: Table("image", columns=("image",)) for name in SPLITS},
}
OLDEST = 120  # the table holds ages up to 414, which are errors


def label_of(findings: str) -> str | None:
    """Label of a cell such as ``Effusion|Pneumonia``; without pneumonia a finding is neither healthy nor COVID-19."""
    names = {name.strip() for name in findings.split("|")} - {""}
    if "Pneumonia" in names:
        return "pneumonia"
    if names == {"No Finding"}:
        return "normal"
    return "non_covid" if names else None


def _age(text: str) -> float | None:
    """Years of ``58`` or ``058Y``; None for another unit and for what nobody reaches."""
    digits = text.removesuffix("Y")
    return float(digits) if digits.isdigit() and int(digits) <= OLDEST else None


def _boxes(table: Path) -> dict[str, tuple[Box, ...]]:
    """Picture's name -> its boxes of pneumonia."""
    found: dict[str, list[Box]] = defaultdict(list)
    columns = ("Bbox [x", "y", "w", "h]")
    for line in read_lines(table, ("Image Index", "Finding Label", *columns)) if table.is_file() else ():
        if line["Finding Label"] == "Pneumonia":
            try:
                x, y, width, height = (float(line[column]) for column in columns)
            except ValueError:
                raise DataError(f"{table}: a box of {INFO.title} is not four numbers") from None
            found[line["Image Index"]].append((x, y, width, height))
    return {name: tuple(boxes) for name, boxes in found.items()}


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per line of the table; one reject per line whose picture is not there."""
    entries = next((name for name in ENTRIES if (root / name).is_file()), ENTRIES[-1])
    require(root, INFO, entries)
    files = {path.name: path for folder in sorted(root.glob("images*")) for path in sorted(folder.rglob("*.png"))}
    if not files:
        require(root, INFO, "images")
    boxes = _boxes(root / BOXES)
    split = {
        name: side
        for listed, side in SPLITS.items()
        if (root / listed).is_file()
        for name in (root / listed).read_text().split()
    }
    needed = ("Image Index", "Finding Labels", "Follow-up #", "Patient Age", "Patient Gender", "View Position")
    for line in read_lines(root / entries, needed):
        name = line["Image Index"]
        if name not in files:
            yield Reject(f"images/{name}", "missing_file", f"{entries} names it, no folder of pictures holds it")
            continue
        # The patient as file names write it, with its zeros: sets that took pictures from here know no other form.
        patient = name.split("_")[0]
        yield Row(
            key=files[name].relative_to(root).as_posix(),
            path=files[name],
            modality="cxr",
            label=label_of(line["Finding Labels"]),
            patient=patient,
            study=f"{patient}_{line['Follow-up #']}",
            view=line["View Position"] if line["View Position"] in ("PA", "AP") else None,
            sex=line["Patient Gender"] if line["Patient Gender"] in ("F", "M") else None,
            age=_age(line["Patient Age"]),
            site="nih",
            boxes=boxes.get(name),
            official_split=split.get(name),
        )
