"""Groups of images that must stay on one side of every split: patient, identical bytes, same picture, one series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.data.same_picture import CORRELATION, HAMMING, Pairs, Thumbnails, candidates, same_pictures


@dataclass(frozen=True)
class Groups:
    """Which images belong together.

    Attributes:
        table: a row per image: image_id, group_id, and picture_id, equal for images that show the same picture
            (identical bytes, same picture or one series). A group may hold many pictures, a picture lies in one group.
        report: how many links each kind gave, and the sizes of the groups.
    """

    table: pd.DataFrame
    report: dict[str, Any]


def group_images(
    manifest: pd.DataFrame,
    *,
    hamming: int = HAMMING,
    correlation: float = CORRELATION,
    thumbnails: Thumbnails | None = None,
) -> Groups:
    """Connected components of the links between images.

    Links: the same patient_id; the same sha256; the same series_uid (volumes); the same picture (images, see
    :mod:`chestflow.data.same_picture`). A group is named after its first image.

    Args:
        manifest: all images, in any order.
        hamming: of the perceptual hashes that are compared.
        correlation: of the thumbnails that are the same picture.
        thumbnails: where they come from; None reads the files.
    """
    manifest = manifest.sort_values("image_id", ignore_index=True)
    volumes = manifest["modality"] == "ct_volume"
    patient = equal_values(manifest["patient_id"])
    content = equal_values(manifest["sha256"])
    series = equal_values(manifest["series_uid"].where(volumes))
    picture = _pictures(manifest, hamming, correlation, thumbnails)
    n = len(manifest)
    group = components(n, [patient, content, series, picture])
    same = components(n, [content, series, picture])
    names = manifest["image_id"].to_numpy()
    table = pd.DataFrame({"image_id": names, "group_id": _first(names, group), "picture_id": _first(names, same)})
    sizes = np.bincount(group) if n else np.zeros(0, int)
    report = {
        "images": n,
        "groups": len(sizes),
        "largest_group": int(sizes.max(initial=0)),
        "same_patient": _joined(patient),
        "identical_bytes": _joined(content),
        "same_series": _joined(series),
        "same_picture_pairs": len(picture[0]),
        "without_patient": int(manifest["patient_id"].isna().sum()),
    }
    return Groups(table, report)


def equal_values(values: pd.Series) -> Pairs:
    """Links from each row to the first that has the same value; nulls link to nothing."""
    known = values.dropna()
    first = known.drop_duplicates()
    anchor = known.map(pd.Series(first.index.to_numpy(), index=first.to_numpy())).to_numpy(np.intp)
    rows = known.index.to_numpy(np.intp)
    return anchor[anchor != rows], rows[anchor != rows]


def equal_pairs(values: pd.Series) -> Pairs:
    """Every pair of rows with the same value; for values that few rows share."""
    members = pd.DataFrame({"value": values.to_numpy(object), "row": np.arange(len(values))})
    members = members[members["value"].notna() & members["value"].duplicated(keep=False)]
    joined = members.merge(members, on="value")
    joined = joined[joined["row_x"] < joined["row_y"]]
    return joined["row_x"].to_numpy(np.intp), joined["row_y"].to_numpy(np.intp)


def components(n: int, links: list[Pairs]) -> NDArray[np.intp]:
    """Number of each row's connected component; components are numbered in the order of their first row."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = (np.concatenate(side) for side in zip(*links, strict=True))
    graph = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(n, n))
    number = connected_components(graph, directed=False)[1]
    _, where = np.unique(number, return_index=True)
    return np.argsort(np.argsort(where))[number]


def _pictures(manifest: pd.DataFrame, hamming: int, correlation: float, thumbnails: Thumbnails | None) -> Pairs:
    """Same pictures, apart from those that nothing depends on: one set's images of one patient are linked anyway."""
    first, second = candidates(manifest, hamming)
    patient, source = manifest["patient_id"].to_numpy(object), manifest["source"].to_numpy(object)
    known = manifest["patient_id"].notna().to_numpy()
    settled = known[first] & known[second] & (patient[first] == patient[second]) & (source[first] == source[second])
    pairs = first[~settled], second[~settled]
    return same_pictures(manifest, pairs, correlation=correlation, thumbnails=thumbnails)


def _first(names: NDArray[Any], component: NDArray[np.intp]) -> NDArray[Any]:
    """``group-<first image of the component>`` for each row; rows are sorted by name."""
    _, where = np.unique(component, return_index=True)
    return np.array([f"group-{name}" for name in names[where]], dtype=object)[component]


def _joined(links: Pairs) -> dict[str, int]:
    """How many images share a value with another, and how many values are shared."""
    return {"images": len(np.unique(np.concatenate(links))), "shared": len(np.unique(links[0]))}
