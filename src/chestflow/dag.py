"""The tables that dvc.yaml iterates over.

DVC's templates cannot nest (``${runs.${item}.recipe}``), so `chestflow config` writes one table a family of stages into
dag.json: run x fold for training, name x fold for tuning, and so on. Trainings, what prepares them, and the report
check at their start that the tables still follow from params.yaml. They have a file of their own, and not YAML, because
DVC parses params.yaml anew for each stage that it looks at: as a section of it they doubled the time of a `dvc repro`
with nothing to do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chestflow.config import MEMBER_SLOTS, Params
from chestflow.errors import ConfigError
from chestflow.files import atomic_path
from chestflow.segmentation import places
from chestflow.training import uses

FILE = Path("dag.json")
#: How many files of other stages a run may take over: a network's two, a pretraining's, a tuned tau's.
USES_SLOTS = 4
#: The parts of params.yaml that say how a modality's lungs are found; only X-rays need a network for it.
LUNGS = {
    "cxr": ["segment.cxr_lungs"],
    "ct_slice": [],
    "ct_volume": [
        f"segment.{name}" for name in ("ct_lung_threshold_hu", "ct_closing_mm", "ct_convex_wall", "ct_prefer_source")
    ],
}
SECTION_SLOTS = 1 + max(map(len, LUNGS.values()))


def _padded(entries: list[str], slots: int, rest: str | None = None) -> list[str]:
    """The entries with ``rest`` (the first entry by default) repeated up to a number of slots."""
    return entries + [entries[0] if rest is None else rest] * (slots - len(entries))


def infection_sections(modality: str) -> list[str]:
    """What the segmenter that a modality's infection masks come from is made by, of params.yaml; of X-rays' lungs."""
    own = [f"infection.{modality}"] if modality in places.INFECTED else []
    return _padded(own + LUNGS[modality], SECTION_SLOTS)


def mask_sections(modality: str) -> list[str]:
    """What a modality's masks are made by, of params.yaml, besides that segmenter."""
    own = ["segment.infection_by_network"] if modality in places.INFECTED else []
    return _padded(own + LUNGS[modality], SECTION_SLOTS)


def segmenter(modality: str, otherwise: str) -> str:
    """The outs of ``infection@<modality>``, or what stands in its place where a modality has none."""
    return places.infection(Path("out"), modality).as_posix() if modality in places.INFECTED else otherwise


def member_slots(params: Params, name: str) -> list[str]:
    """The runs that a run or an ensemble is made of, the first repeated to :data:`~chestflow.config.MEMBER_SLOTS`."""
    return _padded(params.runs_of(name), MEMBER_SLOTS)


def entry(params: Params, name: str) -> dict[str, Any]:
    """What the stages after the trainings need to know of a run or an ensemble."""
    members = member_slots(params, name)
    recipes, modality = [params.runs[run].recipe for run in members], params.modality_of(name)
    return {
        "name": name, "section": f"{'ensembles' if name in params.ensembles else 'runs'}.{name}",
        "task": params.runs[members[0]].task, "cohort": params.task_of(name).cohort, "modality": modality,
        "members": members, "recipes": recipes, "recipe": recipes[0],
    }  # fmt: skip


def taken_slots(params: Params, run: str, fold: int, *, tau: bool = False) -> list[str]:
    """What a run takes over from other stages for its training, or for the search of its ``tau``; the rest of the
    :data:`USES_SLOTS` repeat that stage's fingerprint.
    """
    files = [path.as_posix() for path in uses.files(params, run, fold, Path("out"))]
    files = [f for f in files if not tau or "/tau/" not in f]
    return _padded(files, USES_SLOTS, f"out/code/{'tune_tau' if tau else 'train'}.json")


def tables(params: Params) -> dict[str, Any]:
    """The tables that follow from the parameters."""
    train, tau, tune, ensemble, evaluate = {}, {}, {}, {}, {}
    names = [*params.runs, *params.ensembles]
    for fold in params.folds:
        for name, run in params.runs.items():
            other = params.runs[run.uses["global"]] if "global" in run.uses else run
            item = {
                "run": name, "fold": fold, "task": run.task, "recipe": run.recipe,
                "modality": params.modality_of(name), "methods": [run.method, other.method],
            }  # fmt: skip
            train[f"{name}-{fold}"] = {**item, "uses": taken_slots(params, name, fold)}
            if uses.tau_is_tuned(params, name):
                tau[f"{name}-{fold}"] = {**item, "uses": taken_slots(params, name, fold, tau=True)}
        for name in params.ensembles:
            about = entry(params, name)
            kept = ("name", "modality", "members", "recipes")
            ensemble[f"{name}-{fold}"] = {"fold": fold, **{key: about[key] for key in kept}}
        for name in names:
            tune[f"{name}-{fold}"] = {"name": name, "fold": fold}
    for name in names:
        about = entry(params, name)
        modality, members = about["modality"], about["members"]
        searches = {run: f"out/tune/tau/{run}" for run in members if uses.tau_is_tuned(params, run)}
        searched = [searches.get(run, "stages/register.py") for run in members]
        pseudo = "infection.ct_slice.pseudo.sets" if modality == "ct_slice" else about["section"]
        evaluate[name] = {
            **about, "pseudo": pseudo, "taus": searched, "segmenter": segmenter(modality, "stages/register.py"),
            "segmentation": infection_sections(modality),
        }  # fmt: skip
    infection = {name: {"sections": infection_sections(name)} for name in places.infected(params)}
    segment = {
        name: {"segmenter": segmenter(name, "out/code/segment.json"), "sections": mask_sections(name)}
        for name in params.modalities
    }
    pretrain = {
        name: {"name": name, "recipe": section.recipe, "cohort": section.cohort}
        for name, section in params.pretraining.items()
    }
    recipes = {name: {"modality": params.recipes[name].modality} for name in sorted(params.packed())}
    shortcuts: dict[str, Any] = {}
    for name, run in params.runs.items():  # a task's pictures are seen as its first run sees them
        seen = {"task": run.task, "recipe": run.recipe, "modality": params.modality_of(name)}
        shortcuts.setdefault(run.task, seen)
    report = {
        what: _padded([f"out/{what}/{modality}" for modality in found], slots, "out/code/report.json")
        for what, found, slots in (
            ("infection", list(infection), len(places.INFECTED)),
            ("segment", list(segment), len(LUNGS)),
        )
    }
    return {
        "infection": infection, "segment": segment, "recipes": recipes, "pretrain": pretrain, "tau": tau,
        "train": train, "tune": tune, "ensemble": ensemble, "shortcuts": shortcuts, "evaluate": evaluate,
        "report": report,
    }  # fmt: skip


def write(params: Params, path: Path = FILE) -> bool:
    """Write the tables of these parameters, under the key ``dag``; True when the file changed."""
    new = json.dumps({"dag": tables(params)}, indent=1) + "\n"
    if path.exists() and path.read_text() == new:
        return False
    with atomic_path(path) as temporary:
        temporary.write_text(new)
    return True


def require_current(params: Params, path: Path = FILE) -> None:
    """Raise :class:`ConfigError` when the tables on disk do not follow from the parameters."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        found = None
    if found != {"dag": tables(params)}:
        raise ConfigError(
            f"{path} does not follow from runs, ensembles and folds of params.yaml: run `chestflow config --sync`"
        )
