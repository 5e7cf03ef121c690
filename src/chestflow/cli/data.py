"""`chestflow data`: sets come, are listed, and patients leave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chestflow.cli.phantom import phantom
from chestflow.data.phantom.layout import LARGE
from chestflow.data.phantom.layout import SETS as PHANTOMS

DATA = Path("data")

data = typer.Typer(no_args_is_help=True, help="Put image sets in place, list them, withdraw a patient.")
data.command("phantom")(phantom)


def _id_key() -> str:
    """The key in params.yaml, or the default where there is none yet."""
    from chestflow.config import Data, load

    return load().data.id_key if Path("params.yaml").exists() else str(Data.model_fields["id_key"].default)


@data.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="SET", help="the set's name, see `chestflow data list`")],
    path: Annotated[Path, typer.Argument(help="the folder in which the download was unpacked")],
    copy: Annotated[bool, typer.Option("--copy/--link", help="copy the files, or hard-link them")] = True,
    replace: Annotated[bool, typer.Option(help="take the place of an older copy")] = False,
    metadata: Annotated[
        Path | None, typer.Option(help="a table to put into the set as metadata.csv (darkcovid: Cohen's, for patients)")
    ] = None,
) -> None:
    """Put a downloaded set under data/, print its counts beside the published ones, and track it with DVC."""
    from chestflow.data.ingest import withdrawn
    from chestflow.data.placing import counts, place, put_metadata
    from chestflow.data.sources.base import get
    from chestflow.data.versioning import require_repository, track

    require_repository()
    folder = place(name, path, DATA, link=not copy, replace=replace)
    if metadata is not None:
        put_metadata(metadata, folder)
    for patient in sorted(withdrawn(folder)):
        _remove(patient, only=name)
    print(f"{folder}: {get(name).INFO.title}; licence: {get(name).INFO.licence}")
    print(counts(name, folder).to_string(index=False, na_rep="not stated"))
    file = track(folder, keep_links=not copy)
    print(f"tracked by {file}; commit that file only if every clone can pull the data from a remote")


@data.command("list")
def list_sets() -> None:
    """List the sets that can be read, what is known of them, and which are here; then those that cannot be read yet."""
    import pandas as pd

    from chestflow.data.sources.base import get, names
    from chestflow.data.sources.unsupported import SETS

    known = pd.DataFrame(
        [
            {
                "set": info.name,
                "here": "yes" if (DATA / info.name).is_dir() else "no",
                "modality": "+".join(info.modalities),
                "published": sum(info.published_counts.values()) or "not stated",
                "classes": ", ".join(
                    f"{label} {info.published_counts[label]}" if label in info.published_counts else label
                    for label in info.classes
                ),
                "licence": info.licence,
                "source": info.link,
            }
            for info in (get(name).INFO for name in names())
        ]
    )
    print(known.to_string(index=False))
    print("\nNot supported yet:")
    wanted = pd.DataFrame(
        [
            {
                "set": wanted.name,
                "modality": "+".join(wanted.modalities),
                "classes": ", ".join(wanted.classes),
                "licence": wanted.licence,
                "source": wanted.link,
                "reason": wanted.reason,
            }
            for wanted in SETS
        ]
    )
    print(wanted.to_string(index=False))


@data.command("ensure")
def ensure() -> None:
    """Make the phantom cohorts that params.yaml uses and that are not here; name other sets that are missing."""
    from chestflow.config import load
    from chestflow.data.sources.base import read_rows

    for name in load().data.sets:
        if name in PHANTOMS and not (DATA / name).is_dir():
            phantom(large=name == LARGE)
        next(iter(read_rows(name, DATA / name)), None)


@data.command("locate")
def locate(
    image_id: Annotated[str, typer.Argument(metavar="IMAGE_ID", help="as in rejects.csv or the manifest")],
) -> None:
    """Print where an image's file lies: the one command that shows a path, to mend what ingest refused."""
    from chestflow.data.identity import keyed_id
    from chestflow.data.sources.base import names, read_rows
    from chestflow.errors import DataError

    key = _id_key()
    for name in names():
        if image_id.startswith(f"{name}-") and (DATA / name).is_dir():
            for row in read_rows(name, DATA / name):
                if keyed_id(name, "image", row.key, key) == image_id:
                    print(DATA / name / row.key)
                    return
    raise DataError(f"no set under {DATA}/ holds the image {image_id} (with the id_key of params.yaml)")


def _remove(patient: str, only: str | None = None) -> tuple[int, list[str], list[Path]]:
    """Delete a patient's files; returns their number, the images' ids, and the folders that changed."""
    from chestflow.data.withdrawal import find, remove

    key = _id_key()
    holdings = [holding for holding in find(patient, DATA, key) if only in (None, holding.source)]
    files = sum(remove(holding, patient, key) for holding in holdings)
    return files, [i for holding in holdings for i in holding.image_ids], [holding.root for holding in holdings]


@data.command("withdraw")
def withdraw(
    patient: Annotated[str, typer.Argument(metavar="PATIENT_ID", help="the keyed hash in the manifest")],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Delete a patient's images, masks and table lines, and list the runs and model versions that saw them."""
    from chestflow.config import load
    from chestflow.data.exposure import model_versions, recorded, trained_here
    from chestflow.data.versioning import track, tracked_by
    from chestflow.data.withdrawal import find, remove_derived
    from chestflow.errors import DataError

    held = find(patient, DATA, _id_key())
    if not held:
        raise DataError(f"no set under {DATA}/ holds the patient {patient}: give patient_id as in out/manifest.parquet")
    image_ids = [image_id for holding in held for image_id in holding.image_ids]
    places = ", ".join(f"{len(holding.rows)} in {holding.source}" for holding in held)
    print(f"{patient}: {len(image_ids)} images ({places})")
    if not yes and not typer.confirm("Delete them?"):
        raise typer.Exit(1)
    exposures = trained_here(image_ids, load()) if Path("params.yaml").exists() else []
    earlier = recorded(patient, exposures)
    exposures += earlier or []
    versions = model_versions(exposures)
    files, image_ids, folders = _remove(patient)
    masks = remove_derived(image_ids)
    print(f"deleted {files} files and {masks} derived masks; the patient stays away when a set is added anew")
    for folder in folders:
        if tracked_by(folder):
            print(f"tracked anew by {track(folder)}")
        else:
            print(f"{folder} is not tracked by DVC")
    if earlier is None:
        print("MLflow could not be asked: runs that are not under out/train are not listed")
    _print_exposures(exposures, versions)
    print(
        "Next: `dvc repro` rebuilds manifest, splits, packs, networks and predictions without the patient; then "
        "`dvc gc --workspace` (and --cloud) deletes older versions from the cache. A set that was hard-linked keeps "
        "its originals where they came from."
    )


def _print_exposures(exposures: list, versions: dict[str, list[str]] | None) -> None:
    if not exposures:
        print("no trained run here has seen the patient")
    for seen in exposures:
        made = "registry not asked" if versions is None else ", ".join(versions.get(seen.mlflow_run_id, [])) or "none"
        fold = "" if seen.fold is None else f" fold {seen.fold}"
        run_id = seen.mlflow_run_id or "unknown"
        print(f"run {seen.run}{fold}: {'+'.join(seen.roles)}; MLflow run {run_id}; model versions: {made}")
    if any(seen.learned for seen in exposures):
        print("Weights of the runs with train or tune have seen the patient: retrain them and retire their versions.")
