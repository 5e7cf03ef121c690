"""MosMedData COVID19_1110: 1110 chest CT studies of Moscow as NIfTI, by severity, 50 of them with infection masks.

Layout, read from the set's README_EN.md and registry (in a copy on GitHub) and from public code for it, in the set's
folder or below ``COVID19_1110/``: ``studies/CT-0/study_0001.nii.gz`` to ``CT-4``,
``masks/study_0255_mask.nii.gz`` and ``dataset_registry.xlsx`` (study_id, category, study_file, mask_file; a .csv of
it serves as well).

CT-0 is without signs of viral pneumonia and counts as normal; CT-1 to CT-4 (below 25 % to above 75 % of the lungs) are
COVID-19 by their findings on CT, not by a test of each patient. A study is a patient. Only every tenth slice was kept.
All studies are of one city, and classes differ in severity alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from chestflow.data.ct_collections import nifti_files, nifti_stem
from chestflow.data.source_tables import read_lines
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, mask_reference, require
from chestflow.data.spreadsheet import read_sheet

INFO = SourceInfo(
    name="mosmed",
    title="MosMedData COVID19_1110",
    modalities=("ct_volume",),
    classes=("normal", "covid19"),
    published_counts={"normal": 254, "covid19": 856},
    licence="CC BY-NC-ND 3.0",
    commercial_use=False,
    link="https://mosmed.ai/datasets/covid19_1110",
)
LABELS = {"CT-0": "normal", "CT-1": "covid19", "CT-2": "covid19", "CT-3": "covid19", "CT-4": "covid19"}
REGISTRY = "dataset_registry"
TABLES = {f"{folder}{REGISTRY}.csv": Table("study_file", exact=True) for folder in ("", "COVID19_1110/")}


def _registry(top: Path) -> dict[str, str]:
    """Path of a study below ``studies/`` -> its category; empty without a registry."""
    for file in (top / f"{REGISTRY}.xlsx", top / f"{REGISTRY}.csv"):
        if file.is_file():
            lines = read_sheet(file) if file.suffix == ".xlsx" else read_lines(file, ("study_file", "category"))
            found = {}
            for line in lines:
                parts = PurePosixPath(line.get("study_file", "").replace("\\", "/")).parts
                if len(parts) >= 2:
                    found["/".join(parts[-2:])] = line.get("category", "")
            return found
    return {}


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per study; one reject per study that the registry names, or a mask belongs to, and that is not there.

    A study whose folder and registry disagree about its category keeps no label.
    """
    top = root / "COVID19_1110" if (root / "COVID19_1110").is_dir() else root
    require(root, INFO, (top / "studies").relative_to(root).as_posix())
    within = top.relative_to(root) / "studies"
    registry = _registry(top)
    masks = {nifti_stem(path).removesuffix("_mask"): path for path in nifti_files(top / "masks")}
    seen, there = set(), set()
    for category, label in LABELS.items():
        for path in nifti_files(top / "studies" / category):
            name = f"{category}/{path.name}"
            seen.add(name)
            there.add(nifti_stem(path))
            mask = masks.get(nifti_stem(path))
            yield Row(
                key=path.relative_to(root).as_posix(),
                path=path,
                modality="ct_volume",
                label=label if registry.get(name, category) == category else None,
                patient=nifti_stem(path),
                study=nifti_stem(path),
                site="moscow",
                infection_mask=() if mask is None else (mask_reference(mask),),
            )
    for name in sorted(registry.keys() - seen):
        yield Reject((within / name).as_posix(), "missing_file", "the registry names it, studies/ does not hold it")
    for name in sorted(masks.keys() - there - {nifti_stem(Path(known)) for known in registry}):
        yield Reject((within / name).as_posix(), "missing_file", "a mask is there, its study is not")
