"""What a run shows besides its curves: test figures, pictures, tables, studies, and what it takes over."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from chestflow.files import read_json, write_json
from chestflow.segmentation import places
from chestflow.tracking import evidence as read
from chestflow.tracking import store, taken
from chestflow.tracking.runs import log_metrics
from chestflow.training import history, uses

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from chestflow.config import Params

#: A figure's value and the ends of its interval: what is added to its name, and its key.
ENDS = (("", "value"), ("_lo", "lo"), ("_hi", "hi"))


def attach_evaluation(client: MlflowClient, run_id: str, found: dict[str, Any], name: str, out: Path) -> None:
    """Test figures as metrics; the evaluation's JSON, pictures and tables under ``evaluation/``."""
    log_metrics(client, run_id, read.mlflow_metrics(found))
    with store.clear_errors("attaching the evaluation"), tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(out / "evaluate" / f"{name}.json", Path(folder) / "evaluation.json")
        for file in sorted((out / "evaluate" / name).rglob("*")):
            if file.suffix in (".png", ".svg", ".csv"):
                shutil.copyfile(file, Path(folder) / file.name)
        client.log_artifacts(run_id, folder, "evaluation")


def attach_studies(client: MlflowClient, run_id: str, studies: dict[str, Path]) -> None:
    """The trials of each study as a table and a plot under ``tuning/``, and its chosen values as metrics.

    Args:
        client: of the store.
        run_id: whose.
        studies: a short name of each, and its JSON.
    """
    from chestflow.tuning.studies import history_plot

    with tempfile.TemporaryDirectory() as folder:
        for name, path in studies.items():
            value = read_json(path)
            chosen = {
                f"tuned/{name}/{key}": value[key]
                for key in ("temperature", "threshold", "w_extreme", "w_middle", "cut_low", "cut_high")
                if isinstance(value.get(key), int | float)
            }
            used = value.get("used") or {}
            if "members" in value:
                chosen |= {f"used/{name}/weight_{run}": float(used[run]) for run in value["members"]}
            if isinstance(value.get("default"), dict):
                chosen |= {f"used/{name}/{key}": v for key, v in value["default"].items() if v is not None}
            log_metrics(client, run_id, chosen)
            trials = value.get("trials") or []
            if trials:
                pd.json_normalize(trials).to_csv(Path(folder) / f"{name}.csv", index=False)
                history_plot(trials, Path(folder) / f"{name}.png", name)
        if any(Path(folder).iterdir()):
            with store.clear_errors("attaching the studies"):
                client.log_artifacts(run_id, folder, "tuning")


def attach_taken(client: MlflowClient, run_id: str, params: Params, run: str, fold: int, out: Path) -> None:
    """What a training took over: the search for its tau under ``tau/``, its pretraining under ``pretraining/``."""
    if uses.tau_is_tuned(params, run):
        attach_tau(client, run_id, uses.tau_evidence(run, fold, out))
    if "weights" in params.runs[run].uses:
        attach_pretraining(client, run_id, params.runs[run].uses["weights"], out)


def attach_tau(client: MlflowClient, run_id: str, path: Path) -> None:
    """The chosen tau, the tuned one and the paper's as metrics; the search, its trials and its curve as files."""
    from chestflow.evaluation.stage_figures import tau_curve

    found = read_json(path)
    paper, tuned = found["paper"], found["tuned"]
    used = tuned if found["use"] == "tuned" else paper
    log_metrics(client, run_id, {
        "tau": found["tau"], "tau_value": used["value"], "tau_paper": paper["tau"], "tau_paper_value": paper["value"],
        "tau_tuned": tuned["tau"], "tau_tuned_value": tuned["value"],
    })  # fmt: skip
    with store.clear_errors("attaching the search for tau"), tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder) / "tau.json")
        pd.DataFrame(found["curve"]).to_csv(Path(folder) / "curve.csv", index=False)
        pd.json_normalize(found["trials"]).to_csv(Path(folder) / "trials.csv", index=False)
        tau_curve(found, Path(folder) / "curve.png", f"tau of {found['run']}, fold {found['fold']}")
        client.log_artifacts(run_id, folder, "tau")


def attach_pretraining(client: MlflowClient, run_id: str, name: str, out: Path) -> None:
    """A pretraining's last loss as metrics; what it was, its epochs and their picture as files."""
    from chestflow.evaluation.stage_figures import loss_curve

    source = out / "pretrain" / name
    last, epochs = read_json(source / "pretrain.json")["last"], history.read(source / "history.csv")
    log_metrics(client, run_id, {f"pretraining/{key}": last[key] for key in ("loss", "found")})
    with store.clear_errors("attaching the pretraining"), tempfile.TemporaryDirectory() as folder:
        for file in ("pretrain.json", "history.csv"):
            shutil.copyfile(source / file, Path(folder) / file)
        loss_curve(epochs, Path(folder) / "loss.png", f"pretraining {name}")
        client.log_artifacts(run_id, folder, "pretraining")


def attach_infection(client: MlflowClient, run_id: str, out: Path, modality: str) -> None:
    """How good a modality's segmenter of infection is as ``infection/<modality>/dice`` and so on (of a kind of lesion
    as ``infection/<modality>/ground_glass/dice``), with the evidence, the rounds of pseudo labels and their pictures
    under ``infection/``.

    Args:
        client: of the store.
        run_id: whose.
        out: the stages' outs.
        modality: of the segmenter, and of a run that reads its masks.
    """
    from chestflow.evaluation.report_infection import plots

    about = taken.infection_evidence(out, modality)
    if not about:
        return
    values = {f"{key}{end}": part[at] for key, part in about["figures"].items() for end, at in ENDS}
    values["ratio_error"] = about["ratio_error"]["mae"]
    values |= taken.kind_figures(about)
    log_metrics(client, run_id, {f"infection/{modality}/{key}": value for key, value in values.items()})
    with store.clear_errors("attaching the infection segmenter"), tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "evidence.json", about)
        source = places.infection(out, modality) / "pseudo.json"
        if source.exists():
            pseudo = read_json(source)
            write_json(Path(folder) / "pseudo.json", {name: part["rounds"] for name, part in pseudo.items()})
            for content, caption in plots(pseudo):
                (Path(folder) / f"{caption.lower().replace(' ', '_')}.png").write_bytes(content)
        client.log_artifacts(run_id, folder, "infection")
