"""Stage manifest: the sets' rows in one table, with every count, and what the sets share.

Rows that show one picture in two sets all stay: each brings its own masks, and a cohort may name either set alone. A
cohort that names both uses the copy of the set it names first (see :mod:`chestflow.data.splits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from chestflow.data.groups import equal_pairs
from chestflow.data.manifest import REJECT_COLUMNS, conform
from chestflow.data.same_picture import Pairs, Thumbnails, candidates, same_pictures
from chestflow.errors import DataError
from chestflow.files import atomic_path, read_parquet, write_json, write_parquet


def pool(
    sets: Sequence[str],
    ingested: Path = Path("out/ingest"),
    out: Path = Path("out"),
    *,
    thumbnails: Thumbnails | None = None,
) -> None:
    """Write ``manifest.parquet``, ``rejects.csv`` and ``pooling.json`` to ``out``.

    Args:
        sets: names of the sets; of two copies of one picture, the first named set's is reported as kept.
        ingested: holds a folder for each set, as stage ingest writes it.
        out: the folder of all stages' outs.
        thumbnails: where thumbnails come from; None reads the files.

    Raises:
        DataError: a set has not been ingested, or two sets gave an image the same identity.
    """
    manifest = conform(pd.concat([_read_set(ingested / name, name) for name in sets], ignore_index=True))
    rejects = pd.concat([_read_rejects(ingested / name) for name in sets], ignore_index=True)
    report: dict[str, Any] = {
        "sets": {name: _counts(manifest[manifest["source"] == name], rejects, name) for name in sets},
        "images": len(manifest),
        "rejects": len(rejects),
        "shared": shared(manifest, sets, thumbnails),
    }
    write_parquet(out / "manifest.parquet", manifest)
    with atomic_path(out / "rejects.csv") as temporary:
        rejects.to_csv(temporary, index=False)
    write_json(out / "pooling.json", report)
    print(f"{len(manifest)} images of {len(sets)} sets, {len(rejects)} rejects")
    for sentence in report["shared"]["sentences"]:
        print(sentence)


def _read_set(folder: Path, name: str) -> pd.DataFrame:
    frame = conform(read_parquet(folder / "manifest.parquet"))
    others = sorted(set(frame["source"].dropna()) - {name})
    if others:
        raise DataError(f"{folder / 'manifest.parquet'} holds rows of {', '.join(others)}: ingest {name} again")
    return frame


def _read_rejects(folder: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(folder / "rejects.csv", dtype=str, keep_default_na=False)[list(REJECT_COLUMNS)]
    except FileNotFoundError:
        raise DataError(f"{folder / 'rejects.csv'} is missing: run `dvc repro` to ingest the set") from None
    except (KeyError, pd.errors.ParserError, pd.errors.EmptyDataError):
        raise DataError(f"{folder / 'rejects.csv'} lacks columns: delete {folder} and run `dvc repro`") from None


def _counts(rows: pd.DataFrame, rejects: pd.DataFrame, name: str) -> dict[str, Any]:
    by_modality = {
        str(modality): {
            str(k): int(n) for k, n in mine["label"].fillna("unlabelled").value_counts().sort_index().items()
        }
        for modality, mine in rows.groupby("modality")
    }
    mine = rejects[rejects["source"] == name]
    return {
        "images": len(rows),
        "patients": int(rows["patient_id"].nunique()),
        "without_patient": int(rows["patient_id"].isna().sum()),
        "labels": by_modality,
        "rejects": {str(reason): int(count) for reason, count in mine.groupby("reason").size().items()},
    }


def shared(manifest: pd.DataFrame, sets: Sequence[str], thumbnails: Thumbnails | None = None) -> dict[str, Any]:
    """Images that occur in more than one set, by bytes and by picture, and patients that do.

    Args:
        manifest: all images, index 0 to N - 1.
        sets: in the order that decides which copy is kept.
        thumbnails: where thumbnails come from; None reads the files.
    """
    across = _across(manifest, candidates(manifest))
    kinds = {
        "identical_bytes": _across(manifest, equal_pairs(manifest["sha256"])),
        "same_picture": same_pictures(manifest, across, thumbnails=thumbnails),
    }
    rank = {name: place for place, name in enumerate(sets)}
    source, image = manifest["source"].tolist(), manifest["image_id"].tolist()
    listed: list[dict[str, str]] = []
    seen: set[tuple[int, int]] = set()
    for kind, (first, second) in kinds.items():
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            kept, copy = sorted((a, b), key=lambda row: (rank[source[row]], image[row]))
            if (kept, copy) not in seen:  # identical bytes are the same picture too: once, as the stronger
                seen.add((kept, copy))
                listed.append({"kind": kind, "kept": image[kept], "copy": image[copy]})
    patients = manifest.dropna(subset=["patient_id"]).groupby("patient_id")["source"].nunique()
    both = int((patients > 1).sum())
    listed.sort(key=lambda item: (item["kind"], item["kept"], item["copy"]))
    return {"pairs": listed, "patients": both, "sentences": _sentences(listed, both)}


def _across(manifest: pd.DataFrame, pairs: Pairs) -> Pairs:
    source = manifest["source"].to_numpy(object)
    differ = source[pairs[0]] != source[pairs[1]]
    return pairs[0][differ], pairs[1][differ]


def _sentences(pairs: list[dict[str, str]], patients: int) -> list[str]:
    kinds = ("identical_bytes", "same_picture")
    copies = {kind: len({pair["copy"] for pair in pairs if pair["kind"] == kind}) for kind in kinds}
    said = []
    if pairs:
        said.append(
            f"{copies['identical_bytes']} images have identical bytes in an earlier named set, and"
            f" {copies['same_picture']} more show the same picture: where a cohort names both sets, each counts once."
        )
    if patients:
        said.append(f"{patients} patients occur in more than one set: they stay on one side of every split.")
    return said
