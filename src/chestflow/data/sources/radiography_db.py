"""COVID-19 Radiography Database (Qatar and Dhaka universities): four classes with lung masks, pooled from other sets.

Layout: ``COVID-19_Radiography_Dataset/{COVID,Normal,Viral Pneumonia,Lung_Opacity}/{images,masks}/<Class>-<n>.png`` and
``<Class>.metadata.xlsx`` (FILE NAME, FORMAT, SIZE, URL); read from ``sunlabuiuc/PyHealth:
pyhealth/datasets/covid19_cxr.py``, which also lists where the pictures come from. A mask has the name of its picture
and may have another resolution. No patient is named. The pictures were taken from sets that have adapters here too:
the URL gives the site, and pooling the sets finds what they share. Those that came from Kermany are of children.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chestflow.data.sources.base import Reject, Row, SourceInfo, mask_reference, pictures, require
from chestflow.data.spreadsheet import read_sheet

INFO = SourceInfo(
    name="radiography_db",
    title="COVID-19 Radiography Database",
    modalities=("cxr",),
    classes=("normal", "viral_pneumonia", "pneumonia", "covid19"),
    published_counts={"normal": 10192, "viral_pneumonia": 1345, "pneumonia": 6012, "covid19": 3616},
    licence="of the original authors, not restated",
    commercial_use=None,
    link="https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database",
)
FOLDER = "COVID-19_Radiography_Dataset"
#: Folder -> label. Lung opacity is RSNA's class of that name: pneumonia before there was COVID-19, its germ unknown.
LABELS = {
    "COVID": "covid19",
    "Normal": "normal",
    "Viral Pneumonia": "viral_pneumonia",
    "Lung_Opacity": "pneumonia",
}
#: What a URL in the tables holds -> the collection that it stands for, under the name that other adapters give it.
SITES = {
    "rsna-pneumonia-detection-challenge": "nih",
    "chest-xray-pneumonia": "kermany",
    "ieee8023": "cohen",
    "bimcv": "bimcv",
    "sirm.org": "sirm",
    "eurorad": "eurorad",
    "ml-workgroup": "hannover",
    "COVID-CXNet": "covid_cxnet",
}


def _sites(table: Path) -> dict[str, str]:
    """File's stem, in small letters because one table writes names otherwise than the files -> site."""
    found = {}
    for line in read_sheet(table) if table.is_file() else ():
        site = next((site for part, site in SITES.items() if part in line.get("URL", "")), None)
        if site is not None:
            found[line.get("FILE NAME", "").lower()] = site
    return found


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per picture of the class folders."""
    top = root / FOLDER if (root / FOLDER).is_dir() else root
    require(top, INFO, *(f"{name}/images" for name in LABELS))
    for name, label in LABELS.items():
        sites = _sites(top / f"{name}.metadata.xlsx")
        for path in pictures(top / name / "images"):
            mask = top / name / "masks" / path.name
            yield Row(
                key=path.relative_to(root).as_posix(),
                path=path,
                modality="cxr",
                label=label,
                site=sites.get(path.stem.lower()),
                lung_mask=(mask_reference(mask, resized=True),) if mask.is_file() else (),
            )
