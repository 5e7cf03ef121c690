"""CC-CCII (CNCB 2019nCoVR): chest CT as folders of 8-bit slices: COVID-19 (NCP), common pneumonia (CP) and normal.

Layout, read from ``haydengunraj/COVIDNet-CT: dataset_construction/cncb.py`` and docs/dataset.md, in the set's folder:
``NCP/``, ``CP/`` and ``Normal/`` with ``<patient>/<scan>/<slice>.png`` or ``.jpg``; ``unzip_filenames.csv``
(zip_file, label, patient_id, scan_id, n_slice; read from a copy of it); ``lesions_slices.csv``, a line per slice with a
lesion (``CP/1434/3937/0034.png``); and ``ct_lesion_seg/image/<scan>/<slice>.jpg`` with
``ct_lesion_seg/mask/<scan>/<slice>.png`` (1 lung, 2 ground glass, 3 consolidation; read from the archive's README as
others quote it): 750 slices of 150 patients, a scan of each, counted from 0 and not linked to the scans above.

What is lost: Hounsfield units (slices were stored as pictures of a window that nobody states; that of paper 004, level
-600 and width 1500, is assumed and undone), spacing, and the direction in which slices are numbered (from the head down
is assumed). Slices are commonly said to be damaged, missing or out of order, which was not checked here: a gap in the
numbers, or fewer slices than the list counts, is a reject. Patients' numbers are taken to count over all classes, as
in the part of the list that was seen. CP is common pneumonia, of which the set does not tell the cause. COVIDNet-CT
lists the licence as CC BY 3.0 CN.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from chestflow.data.source_tables import read_lines
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, mask_reference, pictures, require
from chestflow.imaging.grey_volume import grey_slices
from chestflow.imaging.images import Unreadable

INFO = SourceInfo(
    name="cc_ccii",
    title="CC-CCII",
    modalities=("ct_volume", "ct_slice"),
    classes=("normal", "pneumonia", "covid19"),
    published_counts={},  # releases differ, and the number of patients of each class could not be read from one
    licence="CC BY 3.0 CN, as others list it",
    commercial_use=None,
    link="http://ncov-ai.big.ac.cn/download",
)
LABELS = {"NCP": "covid19", "CP": "pneumonia", "Normal": "normal"}
SCANS, LESIONS, SEGMENTED = "unzip_filenames.csv", "lesions_slices.csv", "ct_lesion_seg"
TABLES = {SCANS: Table("scan_id", "patient_id")}
#: HU at grey 0 and 255.
WINDOW = "window=-1350,150"
#: Value in a mask of ct_lesion_seg -> class of chestflow.data.references.LESIONS.
CLASSES = {2: 1, 3: 2}


def _counts(table: Path) -> dict[str, int]:
    """``NCP/1/1001`` -> slices that the list counts; empty without it."""
    if not table.is_file():
        return {}
    needed = ("label", "patient_id", "scan_id", "n_slice")
    return {
        f"{line['label']}/{line['patient_id']}/{line['scan_id']}": int(line["n_slice"])
        for line in read_lines(table, needed)
        if line["n_slice"].isdigit()
    }


def _lesions(table: Path) -> dict[str, set[str]] | None:
    """``NCP/1/1001`` -> stems of its slices with a lesion; None without the list."""
    if not table.is_file():
        return None
    found: dict[str, set[str]] = defaultdict(set)
    for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
        parts = line.strip().strip('"').replace("\\", "/").split("/")
        if len(parts) == 4:  # the first line names the column
            found["/".join(parts[:3])].add(Path(parts[3]).stem)
    return found


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per scan and per segmented slice; one reject per scan that is incomplete, or listed and not there."""
    present = [kind for kind in LABELS if (root / kind).is_dir()]
    require(root, INFO, *(() if present else LABELS))
    counts, lesions, seen = _counts(root / SCANS), _lesions(root / LESIONS), set()
    for kind in present:
        for patient in _folders(root / kind):
            for scan in _folders(patient):
                key = f"{kind}/{patient.name}/{scan.name}"
                seen.add(key)
                yield _scan(key, scan, patient.name, kind, counts.get(key), lesions)
    for key in sorted(counts.keys() - seen):
        if key.split("/")[0] in present:
            yield Reject(key, "missing_file", f"{SCANS} names it, its folder is not there")
    yield from _segmented(root)


def _scan(
    key: str, folder: Path, patient: str, kind: str, counted: int | None, lesions: dict[str, set[str]] | None
) -> Row | Reject:
    try:
        slices = [path.stem for path in grey_slices(folder)]
    except Unreadable as error:
        return Reject(key, error.reason, error.detail)
    if counted is not None and len(slices) < counted:
        return Reject(key, "missing_slices", f"{SCANS} counts {counted} slices, {len(slices)} are there")
    infected: tuple[int, ...] | None = None
    if lesions is not None and key in lesions:
        infected = tuple(place for place, name in enumerate(slices) if name in lesions[key])
    return Row(
        key=key,
        path=folder,
        part=WINDOW,
        modality="ct_volume",
        label=LABELS[kind],
        patient=patient,
        study=folder.name,
        infected_slices=infected,
    )


def _segmented(root: Path) -> Iterator[Row | Reject]:
    """Slices of ct_lesion_seg, which serve their masks."""
    masks, images = root / SEGMENTED / "mask", root / SEGMENTED / "image"
    for patient in _folders(masks):
        known = (
            {path.stem: path for path in pictures(images / patient.name)} if (images / patient.name).is_dir() else {}
        )
        for mask in pictures(patient):
            if mask.stem not in known:
                key = f"{SEGMENTED}/image/{patient.name}/{mask.stem}"
                yield Reject(key, "missing_file", "a mask is there, its slice is not")
                continue
            yield Row(
                key=known[mask.stem].relative_to(root).as_posix(),
                path=known[mask.stem],
                modality="ct_slice",
                label=None,
                patient=f"{SEGMENTED} {patient.name}",
                lung_mask=(mask_reference(mask),),
                infection_mask=tuple(mask_reference(mask, values=(v,), lesion=c) for v, c in CLASSES.items()),
            )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
