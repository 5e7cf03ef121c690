"""Stage ingest: from a set's own layout to manifest rows and rejects; identities end here.

Every file is read whole, once, so that a fault shows here and not in the middle of a training. What leaves is keyed
hashes in place of names, and no tag that identifies a person. The column ``path`` leads to the file and is
never printed.
"""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import pandas as pd

from chestflow.data.examine import OLDEST, Fault, Record, Task, examine, patient_id, task_of
from chestflow.data.identity import keyed_id
from chestflow.data.manifest import REJECT_COLUMNS, conform, empty
from chestflow.data.sources.base import Reject, Row, get, read_rows
from chestflow.errors import DataError
from chestflow.files import atomic_path, write_parquet
from chestflow.parallel import ordered_map

#: In a set's folder: patients who were withdrawn, one keyed hash a line, so that a set added anew leaves them out.
WITHDRAWN = ".withdrawn"


def withdrawn(root: Path) -> set[str]:
    """Patients whom this set must not bring back."""
    file = root / WITHDRAWN
    return set(file.read_text().split()) if file.is_file() else set()


def subset(tasks: list[Task], source: str, patients: int | None) -> list[Task]:
    """The rows of at most ``patients`` patients, each label in its share and with at least one.

    Patients are taken in order of their hashes, so a larger subset holds the smaller one. An image without a patient
    counts as a patient of its own, and a patient with several labels by the one that is rarest in the set.
    """
    if patients is None:
        return tasks
    images: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        images[patient_id(task.row, source, task.id_key) or task.image_id].append(task)
    counts: dict[str, int] = defaultdict(int)
    for task in tasks:
        counts[task.row.label or ""] += 1
    by_label: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(images):
        by_label[
            min((task.row.label or "" for task in images[patient]), key=lambda label: (counts[label], label))
        ].append(patient)
    share = min(Fraction(1), Fraction(patients, len(images)))
    chosen = {name for names in by_label.values() for name in names[: max(1, round(share * len(names)))]}
    return [task for task in tasks if (patient_id(task.row, source, task.id_key) or task.image_id) in chosen]


def to_record(task: Task, source: str, found: Record) -> Record:
    """One manifest row: what the set says, and where it says nothing, what the file says."""
    row = task.row
    age = row.age if row.age is not None else found.pop("header_age", None)
    sex = row.sex or found.pop("header_sex", None)
    study = keyed_id(source, "study", row.study, task.id_key) if row.study else found.pop("header_study", None)
    view = row.view or found.pop("header_view", None)
    return {
        **{name: value for name, value in found.items() if not name.startswith("header_")},
        "image_id": task.image_id,
        "source": source,
        "modality": row.modality,
        "path": row.reference.as_posix(),
        "label": row.label,
        "patient_id": patient_id(row, source, task.id_key),
        "study_id": study,
        "view": view,
        "sex": sex if sex in ("F", "M") else None,
        "age": None if age is None else (90.0 if age > OLDEST else float(age)),
        "site": row.site,
        "infected_slices": None if row.infected_slices is None else list(row.infected_slices),
        "infected_lobes": None if row.infected_lobes is None else list(row.infected_lobes),
        "severity": row.severity,
        "official_split": row.official_split,
        "licence": task.licence,
        "commercial_use": task.commercial_use,
    }


def ingest(
    set_name: str, root: Path, out: Path, *, id_key: str, patients: int | None = None, workers: int | None = None
) -> None:
    """Read a set and write ``out/manifest.parquet`` and ``out/rejects.csv``.

    Args:
        set_name: an adapter of :mod:`chestflow.data.sources`.
        root: the set's folder; a relative one gives relative paths in the manifest.
        id_key: key of the hashes.
        patients: keep this many patients, stratified by label; None keeps all.
        workers: processes; None takes one per core.

    Raises:
        DataError: the set is unknown, its folder is missing or laid out otherwise, or no image of it can be used.
    """
    info = get(set_name).INFO
    gone = withdrawn(root)
    listed = list(read_rows(set_name, root))
    tasks = [task_of(row, info, id_key) for row in listed if isinstance(row, Row)]
    tasks = [task for task in tasks if patient_id(task.row, set_name, id_key) not in gone]
    tasks = sorted(subset(tasks, set_name, patients), key=lambda task: task.image_id)
    faults: list[tuple[str, Fault]] = [
        (keyed_id(set_name, "image", row.key, id_key), (row.reason, row.detail))
        for row in listed
        if isinstance(row, Reject)
    ]
    records: list[Record] = []
    # Volumes are many files each: small chunks keep all cores busy to the end.
    chunk = 1 if "ct_volume" in info.modalities else 8
    for task, (found, problems) in zip(tasks, ordered_map(examine, tasks, workers, chunk), strict=True):
        faults += [(task.image_id, problem) for problem in problems]
        if found is not None:
            records.append(to_record(task, set_name, found))
    rejects = pd.DataFrame(
        [(set_name, image_id, reason, detail) for image_id, (reason, detail) in sorted(faults)],
        columns=list(REJECT_COLUMNS),
    )
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "rejects.csv") as temporary:
        rejects.to_csv(temporary, index=False)
    write_parquet(out / "manifest.parquet", conform(pd.DataFrame(records)) if records else empty())
    print(f"{set_name}: {len(records)} images, {len(rejects)} rejects" + _reasons(rejects))
    if not records:
        raise DataError(
            f"no image of the set {set_name} can be used, {len(listed)} are listed: see why in {out / 'rejects.csv'}"
        )


def _reasons(rejects: pd.DataFrame) -> str:
    counts = rejects.groupby("reason").size()
    return " (" + ", ".join(f"{reason} {count}" for reason, count in counts.items()) + ")" if len(counts) else ""
