"""Rules about what tells the class without showing disease: source, file format, colour mode, size, age.

Guessing is scored by balanced accuracy, leaving each patient out in turn, so that a property with many values (a size
that no two patients share) gains nothing by being remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from chestflow.data.findings import Dataset, Found, count_of, images, rule
from chestflow.data.manifest import POSITIVE
from chestflow.data.sources.base import ADULT, children_only, get, names

FEWEST_CHILDREN = 5
#: A value that so many images of one class have, and so large a share of it, is no accident.
FEWEST_TELLING = 10
SHARE_TELLING = 0.1
#: So many times the share of children that the patients with COVID-19 have: one child among them changes nothing.
FAR_MORE = 5.0


def size_class(rows: pd.DataFrame) -> pd.Series:
    """Width and height, coarsely: the area in steps of 2 ** 0.5 and the aspect in steps of a tenth."""
    width, height = rows["width"].astype(float), rows["height"].astype(float)
    area = ((width * height).map(np.log2) * 2).round() / 2
    aspect = (width / height).round(1)
    return pd.Series([f"area 2^{a:.1f}, aspect {b:.1f}" for a, b in zip(area, aspect, strict=True)], index=rows.index)


#: What is tried, with the words for it. Not knowing a property counts as a value of it.
PROPERTIES: dict[str, tuple[str, Callable[[pd.DataFrame], pd.Series]]] = {
    "source": ("the set that an image comes from", lambda rows: rows["source"]),
    "site": ("the site that an image comes from", lambda rows: rows["site"]),
    "file_format": ("the file format", lambda rows: rows["file_format"]),
    "color_mode": ("the colour mode", lambda rows: rows["color_mode"]),
    "bits": ("the number of bits per pixel", lambda rows: rows["bits"]),
    "size": ("the size of the image", size_class),
    "view": ("the view", lambda rows: rows["view"]),
}


#: Properties that a set may leave unsaid although the image shows them: judged where they are said.
STATED = frozenset({"view"})


def guessing(values: pd.Series, classes: pd.Series, patients: pd.Series) -> float:
    """Balanced accuracy of guessing the class from one property, each patient left out in turn.

    The guess for a value is the class in whose patients it is most frequent, ties shared. A patient counts once for
    each value and class, however many images there are.

    Args:
        values: (N,) of the property; null is a value.
        classes: (N,), two classes or more.
        patients: (N,); null is a patient of its own.
    """
    own = pd.Series([f"image {row}" for row in range(len(values))], index=values.index)
    table = pd.DataFrame(
        {"value": values.astype(str).where(values.notna(), "unknown"), "class": classes, "who": patients.fillna(own)}
    ).drop_duplicates()
    counts = pd.crosstab(table["value"], table["class"]).to_numpy(float)  # (values, classes)
    totals = counts.sum(axis=0)
    right = np.zeros_like(counts)
    for index, total in enumerate(totals):
        # What is known of this value by everyone but one patient of this class.
        rates = counts / totals
        rates[:, index] = (counts[:, index] - 1) / max(total - 1, 1)
        best = rates.max(axis=1, keepdims=True)
        tied = np.isclose(rates, best)
        right[:, index] = np.where(tied[:, index], 1 / tied.sum(axis=1), 0)
    return float(np.mean((counts * right).sum(axis=0) / totals))


@rule("warning")
def class_follows_property(data: Dataset) -> Iterator[Found]:
    """A property that shows no disease and yet tells a class from the rest (validate.confounding_warn)."""
    for name in data.tasks:
        rows = data.classes(name)
        kinds = sorted(rows["class"].unique())
        if len(kinds) < 2:
            continue
        for column, (words, of) in PROPERTIES.items():
            values = of(rows)
            if column in STATED:
                values = values.dropna()
            held = rows.loc[values.index]
            if values.nunique(dropna=False) < 2 or held["class"].nunique() < len(kinds):
                continue
            told = kinds if len(kinds) > 2 else [POSITIVE]
            scores = {kind: guessing(values, held["class"] == kind, held["patient_id"]) for kind in told}
            kind = max(scores, key=lambda kind: scores[kind])
            if scores[kind] >= data.settings.confounding_warn:
                message = (
                    f"In task {name}, {words} alone tells {kind} from the rest with a balanced accuracy of"
                    f" {scores[kind]:.2f} (chance 0.50): a network can learn the source instead of the disease."
                )
                yield name, message, {"property": column, "class": kind, "balanced_accuracy": scores}


@rule("warning")
def value_of_one_class(data: Dataset) -> Iterator[Found]:
    """A colour mode, file format or depth of pixels that one class alone has, though not all of its images do.

    Guessing by it may score little over all images, and yet it gives away every image that has it.
    """
    for name in data.tasks:
        rows = data.classes(name)
        sizes = rows["class"].value_counts()
        for column in ("color_mode", "file_format", "bits"):
            for value, mine in rows.groupby(column):
                kinds = mine["class"].unique()
                enough = len(mine) >= FEWEST_TELLING and len(rows) - sizes[kinds[0]] >= FEWEST_TELLING
                if len(kinds) == 1 and enough and len(mine) >= SHARE_TELLING * sizes[kinds[0]]:
                    words, _ = PROPERTIES[column]
                    message = (
                        f"In task {name}, {images(len(mine))} of {kinds[0]} and none of the rest have {value} as"
                        f" {words}: as stored they tell their class. Pixels are read as grey, yet what made the"
                        " difference may still show in them."
                    )
                    figures = {"property": column, "value": str(value), "class": str(kinds[0]), "images": len(mine)}
                    yield name, message, figures


@rule("warning")
def class_in_one_source(data: Dataset) -> Iterator[Found]:
    """A class all of whose images come from a source that gives no other class, in a cohort of several sources."""
    for name in data.tasks:
        rows = data.classes(name)
        origin = rows["source"] + rows["site"].map(lambda site: f" ({site})" if isinstance(site, str) else "")
        table = pd.crosstab(origin, rows["class"])
        if len(table) < 2 or table.shape[1] < 2:
            continue
        # Of two classes, one stands apart where the other does: once is enough.
        for label in table.columns if table.shape[1] > 2 else [POSITIVE]:
            giving = table[table[label] > 0]
            if (giving.drop(columns=label).sum(axis=1) == 0).all():
                sources = ", ".join(giving.index)
                message = (
                    f"In task {name}, every image of {label} comes from {sources}, where no other class comes from:"
                    " class and source cannot be told apart."
                )
                yield name, message, {"class": str(label), "sources": list(giving.index)}


def paediatric_sets(data: Dataset) -> frozenset[str]:
    """Sets all of whose patients are children, as their authors state; their images seldom carry an age.

    Sets that no cohort names count too: another set that took images from one of them says so as its site.
    """
    known = {name: get(name).INFO for name in names()} | dict(data.infos)
    return frozenset(name for name, info in known.items() if children_only(info))


@rule("warning")
def children_only_among_negatives(data: Dataset) -> Iterator[Found]:
    """Children among the other classes, and none or by far fewer with COVID-19: a network can learn age."""
    paediatric = paediatric_sets(data)
    for name in data.tasks:
        rows = data.classes(name)
        by_set = rows["source"].isin(paediatric) | rows["site"].isin(paediatric)
        child = by_set | (rows["age"] < ADULT).fillna(False).astype(bool)
        positive = rows["class"] == POSITIVE
        among, ill = int((child & ~positive).sum()), int((child & positive).sum())
        if not positive.any() or among < FEWEST_CHILDREN:
            continue
        shares = among / int((~positive).sum()), ill / int(positive.sum())
        if shares[0] >= FAR_MORE * shares[1]:
            message = (
                f"In task {name}, {among} images of the other classes are of children ({shares[0]:.0%}), and"
                f" {ill or 'none'} of {POSITIVE}: a network can learn age instead of the disease."
            )
            figures = {"children": among, "by_set": int((by_set & ~positive).sum()), "with_covid19": ill}
            yield name, message, figures


@rule("warning")
def volumes_of_grey_values(data: Dataset) -> Iterator[Found]:
    """Volumes whose Hounsfield units are gone, and were given back from grey values by a stated window."""
    for name, rows in data.sets():
        grey = rows[(rows["modality"] == "ct_volume") & (rows["color_mode"] != "HU")]
        if len(grey):
            unknown = int(grey["spacing_mm"].isna().sum())
            message = (
                f"Set {name} has {count_of(len(grey), 'volume')} of 8-bit grey values: what lay beyond their window is"
                f" lost, and for {unknown} of them the spacing is assumed. Beside volumes in Hounsfield units they tell"
                " their source."
            )
            yield name, message, {"volumes": len(grey), "without_spacing": unknown}
