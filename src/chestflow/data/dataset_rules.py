"""Rules about sets, cohorts and tasks, in plain pandas: what is missing, doubled or contradicts itself.

Each is a small generator that yields (where, sentence, figures) for whatever it finds. What predicts the class without
showing disease is looked for in :mod:`chestflow.data.confounding_rules`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from chestflow.data.findings import Dataset, Found, count_of, images, rule
from chestflow.data.manifest import POSITIVE

#: A label that says less than another does not contradict it.
BROADER: dict[str, frozenset[str]] = {
    "pneumonia": frozenset({"bacterial_pneumonia", "viral_pneumonia", "cap"}),
    "cap": frozenset({"bacterial_pneumonia", "viral_pneumonia", "pneumonia"}),
    "non_covid": frozenset({"normal", "bacterial_pneumonia", "viral_pneumonia", "pneumonia", "cap", "other_infection"}),
}
MISSING_PATIENTS = 0.05
REJECTED = 0.02
MOST_DAMAGED = 0.5
#: Reasons of rejects that say that a table names a file which the copy of the set does not hold.
NOT_THERE = ("missing", "missing_file")


def compatible(a: str | None, b: str | None) -> bool:
    """Whether two labels can be true of one image; unknown is compatible with all."""
    return pd.isna(a) or pd.isna(b) or a == b or b in BROADER.get(str(a), ()) or a in BROADER.get(str(b), ())


@rule("critical")
def cohort_is_empty(data: Dataset) -> Iterator[Found]:
    """A cohort, or an external set of it, without a labelled image."""
    for name, cohort in data.cohorts.items():
        if data.members(name).empty:
            sets = ", ".join(cohort.sets)
            yield name, f"Cohort {name} has no labelled {cohort.modality} image in {sets}: check sets and labels.", {}
        outside = set(data.members(name, external=True)["source"])
        for source in sorted(set(cohort.external) - outside):
            yield name, f"The external set {source} has no labelled {cohort.modality} image for cohort {name}.", {}


@rule("critical")
def one_class_only(data: Dataset) -> Iterator[Found]:
    """A task whose cohort has images of one class only, or lacks a class."""
    for name, task in data.tasks.items():
        counts = data.classes(name)["class"].value_counts()
        missing = [label for label in task.classes if label not in counts.index]
        if missing and not data.members(task.cohort).empty:
            held = ", ".join(counts.index) or "none of its classes"
            figures = {"images": {str(k): int(v) for k, v in counts.items()}, "missing": missing}
            yield (
                name,
                f"Task {name} has images of {held} only, none of {', '.join(missing)}:"
                f" add a set that has them to cohort {task.cohort}, or take the class out.",
                figures,
            )


@rule("critical")
def too_few_images(data: Dataset) -> Iterator[Found]:
    """A class with fewer images than validate.min_images_per_class."""
    least = data.settings.min_images_per_class
    for name in data.tasks:
        for label, count in data.classes(name)["class"].value_counts().sort_index().items():
            if count < least:
                message = (
                    f"Task {name} has {images(count)} of {label}, fewer than validate.min_images_per_class ({least})."
                )
                yield name, message, {"class": label, "images": int(count)}


@rule("critical")
def labels_disagree(data: Dataset) -> Iterator[Found]:
    """The same file or the same picture under labels that exclude each other, within one cohort."""
    for cohort in data.cohorts:
        inside = set(data.members(cohort).index)
        pairs = [(a, b) for a, b in _twins(data) if a in inside and b in inside]
        if pairs:
            yield cohort, _disagreement(data, pairs, f"in cohort {cohort}"), _examples(data, pairs)


@rule("warning")
def labels_disagree_elsewhere(data: Dataset) -> Iterator[Found]:
    """The same picture under labels that exclude each other, in sets that no cohort joins."""
    members = [set(data.members(cohort).index) for cohort in data.cohorts]
    pairs = [(a, b) for a, b in _twins(data) if not any(a in inside and b in inside for inside in members)]
    if pairs:
        yield "all sets", _disagreement(data, pairs, "outside any one cohort"), _examples(data, pairs)


def _twins(data: Dataset) -> list[tuple[int, int]]:
    return [] if data.twins is None else list(zip(data.twins[0].tolist(), data.twins[1].tolist(), strict=True))


def _disagreement(data: Dataset, pairs: list[tuple[int, int]], where: str) -> str:
    label = data.manifest["label"]
    kinds = sorted({" and ".join(sorted((label[a], label[b]))) for a, b in pairs})
    count = "1 pair of images shows" if len(pairs) == 1 else f"{len(pairs)} pairs of images show"
    return (
        f"{count} the same picture {where} under labels that exclude each other ({'; '.join(kinds)}):"
        " take the wrong ones out of the set."
    )


def _examples(data: Dataset, pairs: list[tuple[int, int]]) -> dict[str, object]:
    image = data.manifest["image_id"]
    return {"pairs": len(pairs), "first": [[image[a], image[b]] for a, b in pairs[:10]]}


@rule("warning")
def counts_differ_from_published(data: Dataset) -> Iterator[Found]:
    """A set ingested whole whose counts are not those that its authors state."""
    if not data.complete:
        return
    for name, rows in data.sets():
        published = dict(data.infos[name].published_counts) if name in data.infos else {}
        if not published:
            continue
        volumes = rows["modality"].eq("ct_volume").all()  # authors of volume sets count patients
        counted = rows.groupby("label")["patient_id"].nunique() if volumes else rows.groupby("label").size()
        ours = {label: int(counted.get(label, 0)) for label in published}
        differ = {
            label: {"here": n, "published": published[label]} for label, n in ours.items() if n != published[label]
        }
        if differ:
            listed = ", ".join(f"{label} {n['here']} of {n['published']}" for label, n in differ.items())
            what = "patients" if volumes else "images"
            yield name, f"Set {name} does not have the published number of {what}: {listed}.", differ


@rule("warning")
def official_split_is_another(data: Dataset) -> Iterator[Found]:
    """A set ingested whole whose official split has other sides than its authors state."""
    for name, rows in data.sets():
        published = dict(data.infos[name].official_counts) if name in data.infos else {}
        if not data.complete or not published:
            continue
        here = {side: int((rows["official_split"] == side).sum()) for side in published}
        if here != published:
            listed = ", ".join(f"{side} {here[side]} of {n}" for side, n in published.items())
            message = (
                f"The official split of set {name} is not the published one ({listed}): figures on its test are not"
                " those on the authors' test."
            )
            yield name, message, {"here": here, "published": published}


@rule("warning")
def labels_left_out(data: Dataset) -> Iterator[Found]:
    """Labelled images of a cohort that a task puts in none of its classes."""
    for name, task in data.tasks.items():
        rows = data.members(task.cohort)
        left = rows.drop(index=data.classes(name).index)["label"].value_counts().sort_index()
        if len(left):
            listed = ", ".join(f"{label} {n}" for label, n in left.items())
            figures = {str(label): int(n) for label, n in left.items()}
            yield name, f"Task {name} uses no image of these labels of cohort {task.cohort}: {listed}.", figures


@rule("warning")
def identical_files(data: Dataset) -> Iterator[Found]:
    """Files with identical bytes within one set."""
    for name, rows in data.sets():
        sizes = rows.groupby("sha256").size()
        doubled = sizes[sizes > 1]
        if len(doubled):
            message = (
                f"Set {name} has {images(int(doubled.sum()))} in {count_of(len(doubled), 'group')} of identical files."
            )
            yield name, message, {"groups": len(doubled), "images": int(doubled.sum())}


@rule("warning")
def patients_unknown(data: Dataset) -> Iterator[Found]:
    """A set where many images name no patient, so that splits rest on files and pictures alone."""
    for name, rows in data.sets():
        share = float(rows["patient_id"].isna().mean())
        if share > MISSING_PATIENTS:
            message = (
                f"Set {name} names no patient for {share:.0%} of its images: one patient's images may stand on two"
                " sides of a split, and figures per patient count each as a patient."
            )
            yield name, message, {"share": share}


@rule("warning")
def patients_in_two_classes(data: Dataset) -> Iterator[Found]:
    """Patients with images of several classes of a task."""
    for name in data.tasks:
        kinds = data.classes(name).dropna(subset=["patient_id"]).groupby("patient_id")["class"].nunique()
        several = int((kinds > 1).sum())
        if several:
            message = f"Task {name} has {count_of(several, 'patient')} with images of more than one class."
            yield name, message, {"patients": several}


def _reject_shares(data: Dataset, rejects: pd.DataFrame) -> Iterator[tuple[str, int, float]]:
    kept = data.manifest.groupby("source").size()
    lost = rejects[~rejects["image_id"].isin(data.manifest["image_id"])]  # a faulty mask rejects no image
    for name, count in lost.groupby("source")["image_id"].nunique().items():
        yield str(name), int(count), int(count) / (int(count) + int(kept.get(name, 0)))


@rule("warning")
def files_rejected(data: Dataset) -> Iterator[Found]:
    """A set that lost a noticeable share of its files at ingest, missing ones included."""
    for name, count, share in _reject_shares(data, data.rejects):
        if share > REJECTED:
            message = f"Ingest refused {images(count)} of set {name}, {share:.1%}: out/rejects.csv says why."
            yield name, message, {"images": count, "share": share}


@rule("critical")
def most_files_damaged(data: Dataset) -> Iterator[Found]:
    """A set most of whose files are there and cannot be read: a broken download, or the wrong adapter."""
    damaged = data.rejects[~data.rejects["reason"].isin(NOT_THERE)]
    for name, count, share in _reject_shares(data, damaged):
        if share > MOST_DAMAGED:
            message = (
                f"Of set {name}, {images(count)} cannot be read, {share:.0%}:"
                " see out/rejects.csv and get the set again."
            )
            yield name, message, {"images": count, "share": share}


@rule("warning")
def official_split_conflicts(data: Dataset) -> Iterator[Found]:
    """Patients, or identical files, on two sides of a set's official split."""
    for name, rows in data.sets():
        given = rows.dropna(subset=["official_split"])
        figures = {
            what: int((given.dropna(subset=[column]).groupby(column)["official_split"].nunique() > 1).sum())
            for what, column in (("patients", "patient_id"), ("files", "sha256"))
        }
        if any(figures.values()):
            both = f"{count_of(figures['patients'], 'patient')} and {count_of(figures['files'], 'file')}"
            message = (
                f"The official split of set {name} has {both} on two sides: results on it as it stands are too good;"
                " our split excludes what crosses."
            )
            yield name, message, figures


@rule("warning")
def licence_restricts_use(data: Dataset) -> Iterator[Found]:
    """Images whose licence is unstated or does not allow commercial use."""
    for name, rows in data.sets():
        allowed = rows["commercial_use"].fillna(False).astype(bool)
        if not allowed.all():
            words = ", ".join(sorted(rows.loc[~allowed, "licence"].dropna().unique())[:5]) or "none stated"
            count = int((~allowed).sum())
            message = (
                f"Set {name} has {images(count)} whose licence allows no commercial use or is not clear ({words}):"
                " a model trained on it stays out of production unless the installation declares research use."
            )
            yield name, message, {"images": count}


@rule("warning")
def positive_rare(data: Dataset) -> Iterator[Found]:
    """COVID-19, or all else, is less than a twentieth of a task's images: precision and accuracy mislead there."""
    for name in data.tasks:
        rows = data.classes(name)
        share = float((rows["class"] == POSITIVE).mean()) if len(rows) else 0.5
        if 0 < share < 0.05 or 0.95 < share < 1:
            message = f"In task {name}, {share:.1%} of the images are of {POSITIVE}: accuracy says little there."
            yield name, message, {"share": share}
