"""What a run's tags, parameters and dataset say: which data, which code, which stage and settings made it."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from chestflow.data.phantom.layout import SETS as PHANTOMS
from chestflow.files import read_parquet, sha256_file
from chestflow.tracking import taken

if TYPE_CHECKING:
    import pandas as pd

    from chestflow.config import Params


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code_version() -> dict[str, str]:
    """The commit, and whether tracked files differ from it; ``unknown`` outside a git repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"git_commit": "unknown"}
    # params.yaml and dvc.lock change with every run of the pipeline; the params hash stands for the former
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "src", "stages", "dvc.yaml")
    return {"git_commit": commit, "git_changed": "yes" if changed else "no"}


def person() -> str:
    """Who runs this: git's name and the account."""
    try:
        account = getpass.getuser()
    except (OSError, KeyError):
        account = "unknown"
    name = _git("config", "user.name")
    return f"{name} ({account})" if name and name != account else account


def cohort_sets(params: Params, run: str) -> list[str]:
    """The sets that a run's cohort is made of, without the external ones."""
    return list(params.cohorts[params.tasks[params.runs[run].task].cohort].sets)


def is_phantom(params: Params, run: str) -> bool:
    """Whether any of the run's training images are synthetic; what is trained on them is marked everywhere."""
    return not set(PHANTOMS).isdisjoint(cohort_sets(params, run))


def data_md5(params: Params, run: str, out: Path) -> str:
    """What stands for the data of the run's cohort; as :func:`md5_of` says."""
    return md5_of(cohort_sets(params, run), out)


def md5_of(sets: list[str], out: Path) -> str:
    """DVC's md5 of each set; where DVC does not track one of them, the manifest's sha256."""
    found = {}
    for file in [Path("data.dvc"), *sorted(Path("data").glob("*.dvc"))]:
        if not file.exists():
            continue
        try:
            described = yaml.safe_load(file.read_text()) or {}
        except yaml.YAMLError:
            continue
        for item in described.get("outs", []):
            found[Path(str(item.get("path", ""))).name] = str(item.get("md5", ""))
    known = {name: found[name] for name in sets if found.get(name)}
    if len(known) < len(sets):
        manifest = out / "manifest.parquet"
        return f"manifest:{sha256_file(manifest)[:32]}" if manifest.exists() else "unknown"
    return ",".join(f"{name}:{md5}" for name, md5 in known.items())


def training_sections(params: Params, run: str, fold: int) -> dict[str, Any]:
    """The parts of params.yaml that the stage train@run-fold depends on."""
    section = params.runs[run]
    return {
        "profile": params.profile,
        "seed": params.seed,
        "fold": fold,
        "engine": params.engine.model_dump(mode="json"),
        "task": params.tasks[section.task].model_dump(mode="json"),
        "recipe": params.recipes[section.recipe].model_dump(mode="json"),
        "run": section.model_dump(mode="json"),
    }


def params_hash(sections: dict[str, Any]) -> str:
    """A short hash of parameters, whatever their order."""
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:16]


def training_tags(params: Params, run: str, fold: int, out: Path) -> dict[str, str]:
    """The tags of one training run."""
    section = params.runs[run]
    return {
        **common_tags(params, f"train@{run}-{fold}", cohort_sets(params, run), out),
        "run": run,
        "fold": str(fold),
        "method": section.method,
        "task": section.task,
        "cohort": params.tasks[section.task].cohort,
        "params_hash": params_hash(training_sections(params, run, fold)),
        **taken.tags(params, run, fold, out),
        "mlflow.source.name": "stages/train.py",
    }


def common_tags(params: Params, stage: str, sets: list[str], out: Path) -> dict[str, str]:
    """The tags that every stage's run has: which stage, data and code; ``stage`` is its name outside DVC."""
    version = code_version()
    return {
        "stage": os.environ.get("DVC_STAGE") or stage,
        "profile": params.profile,
        "phantom": "no" if set(PHANTOMS).isdisjoint(sets) else "yes",
        "data_md5": md5_of(sets, out),
        **version,
        # names that MLflow's own pages read
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": version["git_commit"],
        "mlflow.user": person(),
    }


def training_parameters(params: Params, run: str, fold: int) -> dict[str, str]:
    """A run's parameters, flat and short: the method's own under their plain names."""
    section = params.runs[run]
    values = {
        "method": section.method,
        "task": section.task,
        "recipe": section.recipe,
        "fold": fold,
        "seed": params.seed + section.seed,
        "device": params.engine.device,
        "amp": params.engine.amp,
        **section.config,
        **taken.names(params, run),
    }
    return {name: _short(value) for name, value in values.items()}


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def images_of(params: Params, run: str, fold: int, out: Path) -> pd.DataFrame:
    """The images of a run's cohort in one fold: image_id, patient_id, source and role, in order of image_id."""
    cohort = params.tasks[params.runs[run].task].cohort
    splits = read_parquet(out / "splits.parquet")
    splits = splits[(splits["cohort"] == cohort) & (splits["fold"] == fold)]
    manifest = read_parquet(out / "manifest.parquet")[["image_id", "patient_id", "source"]]
    joined = splits[["image_id", "role"]].merge(manifest, on="image_id", how="left")
    return joined.sort_values("image_id", ignore_index=True)[["image_id", "patient_id", "source", "role"]]


def infection_images(params: Params, out: Path, modality: str) -> pd.DataFrame:
    """Images that may have taught a modality's segmenter of infection: those with masks and, where these count as
    empty, healthy ones (role ``masks``), and those that may get pseudo labels (``unlabelled``). None for X-rays.

    Some of them are kept aside to be measured, and some barred from pseudo labels: a withdrawal rather finds one
    too many.
    """
    import pandas as pd

    from chestflow.segmentation.reading import with_paths

    own = getattr(params.infection, modality, None)
    if own is None or not own.sets:
        return with_role([], "masks", out)
    manifest = read_parquet(out / "manifest.parquet")
    here, given = manifest["modality"] == modality, with_paths(manifest["infection_mask"])
    healthy = (manifest["label"] == "normal").fillna(False).astype(bool) & own.normal_as_empty
    taught = here & manifest["source"].isin(own.sets) & (given | healthy)
    found = [with_role(manifest.loc[taught, "image_id"].tolist(), "masks", out)]
    if modality == "ct_slice":
        pseudo = here & manifest["source"].isin(own.pseudo.sets) & ~given & ~taught
        found.append(with_role(manifest.loc[pseudo, "image_id"].tolist(), "unlabelled", out))
    return pd.concat(found, ignore_index=True)


def with_role(images: list[str], role: str, out: Path) -> pd.DataFrame:
    """Images as :func:`images_of` lists them, all in one role."""
    manifest = read_parquet(out / "manifest.parquet")[["image_id", "patient_id", "source"]]
    return manifest[manifest["image_id"].isin(images)].assign(role=role).sort_values("image_id", ignore_index=True)
