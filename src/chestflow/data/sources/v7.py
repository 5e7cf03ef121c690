"""V7 Labs' COVID-19 X-ray dataset: Cohen's and Kermany's pictures with lung masks and tags.

Layout: ``images/`` and one Darwin JSON per picture in ``annotations/all-images/`` (as the repository holds them) or
``releases/all-images/annotations/`` (as ``darwin dataset pull`` writes them, under other names); a mask in
``annotations/all-images-semantic-masks/`` has the name of the repository's JSON, 255 for lung and 127 for what covers
it (pacemakers, writing), which lies over lung and counts as lung here. Read from ``v7labs/covid-19-xray-dataset``:
README.md and annotations/all-images-semantic-masks/class_mapping.csv, ``achillesrasquinha/deeply:
src/deeply/datasets/v7darwin.py``, and for the tags ``mfmezger/covid-supine-prediction:
preprocessing-json-folder/json-parser.py``. Tags are ``View/PA``, ``Sex/F``, ``Age/45``, ``COVID-19``, ``Viral
Pneumonia``, ``No Pneumonia (healthy)`` and the like; a tag that is not known here says nothing.

CT slices and lateral views are left out, as the authors advise. Where a picture's original name is Kermany's, or stands
in Cohen's metadata.csv (in the set's folder, or in ``cohen`` or ``cohen_seg`` beside it), so does its patient: most
pictures without COVID-19 are of Kermany's children, those with it of Cohen's adults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chestflow.data.cohen_metadata import metadata_near
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, mask_reference, pictures, require
from chestflow.data.sources.kermany import named
from chestflow.errors import DataError

INFO = SourceInfo(
    name="v7",
    title="V7 Labs' COVID-19 X-ray dataset",
    modalities=("cxr",),
    classes=(
        "normal", "bacterial_pneumonia", "viral_pneumonia", "pneumonia", "other_infection", "non_covid", "covid19",
    ),
    # The authors state 6500 images and 517 of COVID-19, CT slices and lateral views among them.
    published_counts={},
    licence="annotations CC BY 4.0, images by their own",
    commercial_use=None,
    link="https://github.com/v7labs/covid-19-xray-dataset",
)  # fmt: skip
ANNOTATIONS = ("annotations/all-images", "releases/all-images/annotations")
MASKS = "annotations/all-images-semantic-masks"
TABLES = {"metadata.csv": Table("filename", "patientid", "cohen")}
#: Tag -> label.
LABELS = {
    "COVID-19": "covid19",
    **dict.fromkeys(("Viral Pneumonia", "SARS", "Influenza", "Varicella"), "viral_pneumonia"),
    **dict.fromkeys(
        ("Bacterial Pneumonia", "Streptococcus", "Klebsiella", "Legionella", "E.Coli", "Chlamydophila", "Mycoplasma"),
        "bacterial_pneumonia",
    ),
    **dict.fromkeys(("Fungal Pneumonia", "Pneumocystis"), "other_infection"),
    **dict.fromkeys(("Lipoid pneumonia", "ARDS"), "non_covid"),
    **dict.fromkeys(("Pneumonia", "Undefined Pneumonia"), "pneumonia"),
    **dict.fromkeys(("No Pneumonia (healthy)", "No Finding"), "normal"),
}
VIEWS = {"view/pa": "PA", "view/ap": "AP", "view/ap_supine": "AP Supine"}
LATERAL = {"view/lateral", "view/l", "lateral"}
CT = {"ct", "view/axial", "view/coronal"}


def label_of(tags: set[str]) -> str | None:
    """One label for a picture's tags; COVID-19 goes before all, a kind of pneumonia before its mere mention."""
    found = {LABELS[tag] for tag in tags if tag in LABELS}
    if "covid19" in found:
        return "covid19"
    for vague in ("pneumonia", "non_covid"):  # ARDS says how ill a patient is and not of what
        if len(found) > 1:
            found.discard(vague)
    return found.pop() if len(found) == 1 else None


def _read(path: Path) -> tuple[dict[str, Any], set[str]]:
    """What a Darwin JSON says about its picture, and the names of its tags."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["image"]), {str(item["name"]).strip() for item in content["annotations"]}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is not a Darwin annotation: get it again from {INFO.link}") from None


def _after(tags: set[str], pattern: str) -> str | None:
    return next((match[1] for tag in sorted(tags) if (match := re.fullmatch(pattern, tag))), None)


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per annotated frontal X-ray; one reject per CT slice, lateral view and picture that is not there."""
    folder = next((name for name in ANNOTATIONS if (root / name).is_dir()), ANNOTATIONS[0])
    require(root, INFO, "images", folder)
    files, cohen = {path.name: path for path in pictures(root / "images")}, metadata_near(root)
    for annotation in sorted((root / folder).glob("*.json")):
        about, tags = _read(annotation)
        names = [str(about[name]) for name in ("original_filename", "filename") if about.get(name)]
        path = next((files[name] for name in reversed(names) if name in files), None)
        key, small = f"{folder}/{annotation.name}", {tag.lower() for tag in tags}
        if small & (CT | LATERAL):
            yield Reject(key, "wrong_modality", "a CT slice" if small & CT else "a lateral view")
            continue
        if path is None:
            yield Reject(key, "missing_file", "its annotation names a picture that images/ does not hold")
            continue
        stems = [Path(name).stem for name in names]
        child = next((found[0] for stem in stems if (found := named(stem))), None)
        record = next((cohen[stem] for stem in stems if stem in cohen), None)
        age, mask = _after(tags, r"Age/(\d+)"), root / MASKS / f"{annotation.stem}.png"
        origin = "kermany" if child else "cohen" if record else None
        yield Row(
            key=key,
            path=path,
            modality="cxr",
            label=label_of(tags),
            patient=child or (record.patient if record else None),
            patient_source=origin,
            view=next((view for tag, view in VIEWS.items() if tag in small), None),
            sex=_after(tags, r"Sex/([FM])"),
            age=float(age) if age else None,
            site=origin,
            lung_mask=(mask_reference(mask),) if mask.is_file() else (),
            companions=(annotation,),
        )
