"""SARS-CoV-2 CT-scan dataset (Sao Paulo): CT slices as PNG, of patients with COVID-19 and of others.

Layout, read from public code for ``plameneduardo/sarscov2-ctscan-dataset``: ``COVID/Covid (1).png`` and on,
``non-COVID/Non-Covid (1).png`` and on. Users of it cite the authors with 60 patients of each class; names are plain
numbers, which say of no slice whose it is, so slices of one patient stand on both sides of any split of it:
near-identical ones are found by their picture, others are not, and figures on the set are too good. The other class
holds patients with further lung diseases.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chestflow.data.sources.base import Reject, Row, SourceInfo, pictures, require

INFO = SourceInfo(
    name="sars_cov2_ct",
    title="SARS-CoV-2 CT-scan dataset",
    modalities=("ct_slice",),
    classes=("non_covid", "covid19"),
    published_counts={"non_covid": 1230, "covid19": 1252},
    licence="CC BY-NC-SA 4.0",
    commercial_use=False,
    link="https://www.kaggle.com/plameneduardo/sarscov2-ctscan-dataset",
)
LABELS = {"COVID": "covid19", "non-COVID": "non_covid"}


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per picture."""
    require(root, INFO, *LABELS)
    for folder, label in LABELS.items():
        for path in pictures(root / folder):
            yield Row(
                key=path.relative_to(root).as_posix(), path=path, modality="ct_slice", label=label, site="sao_paulo"
            )
