"""Brixia scores on Cohen's X-rays: how much of the lungs is ill, 0 to 18, by two radiologists.

Layout: ``public-annotations.csv`` (filename, S-A to S-F, S-Global of the senior radiologist, J-A to J-Global of the
junior) and ``public-cohen-subset/``, at the top or in ``data/``; read from ``BrixIA/Brixia-score-COVID-19``: README.md,
data/public-annotations.csv and src/datasets/brixiascore_cohen.py. The manifest's ``severity`` is the senior's global
score. Findings and patients are Cohen's, by the file's stem, where his metadata.csv lies in the set's folder or in
``cohen`` or ``cohen_seg`` beside it: without it a picture has a score and no label.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chestflow.data.cohen_metadata import metadata_near
from chestflow.data.source_tables import read_lines
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, pictures, require

INFO = SourceInfo(
    name="brixia",
    title="Brixia scores of Cohen's X-rays",
    modalities=("cxr",),
    classes=(
        "normal",
        "bacterial_pneumonia",
        "viral_pneumonia",
        "pneumonia",
        "other_infection",
        "non_covid",
        "covid19",
    ),
    published_counts={},  # the authors state the total alone: 192
    licence="scores CC BY-NC-SA 4.0, images by their own",
    commercial_use=False,
    link="https://github.com/BrixIA/Brixia-score-COVID-19",
)
SCORES, IMAGES = "public-annotations.csv", "public-cohen-subset"
TABLES = {
    SCORES: Table("filename"),
    f"data/{SCORES}": Table("filename"),
    "metadata.csv": Table("filename", "patientid", "cohen"),
}
HIGHEST = 18


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per scored picture; one reject per scored name without a picture."""
    top = root / "data" if (root / "data" / SCORES).is_file() else root
    require(top, INFO, SCORES, IMAGES)
    files, cohen = {path.name: path for path in pictures(top / IMAGES)}, metadata_near(root)
    for line in read_lines(top / SCORES, ("filename", "S-Global")):
        name = line["filename"]
        key = (top / IMAGES / name).relative_to(root).as_posix()
        if name not in files:
            yield Reject(key, "missing_file", f"{SCORES} names it, {IMAGES}/ does not hold it")
            continue
        record, score = cohen.get(Path(name).stem), line["S-Global"]
        yield Row(
            key=key,
            path=files[name],
            modality=record.modality if record else "cxr",
            label=record.label if record else None,
            patient=record.patient if record else None,
            patient_source="cohen" if record else None,
            view=record.view if record else None,
            sex=record.sex if record else None,
            age=record.age if record else None,
            site="cohen" if record else None,
            severity=float(score) if score.isdigit() and int(score) <= HIGHEST else None,
        )
