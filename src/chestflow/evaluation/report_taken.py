"""The report's parts about what runs take over: thresholds that a stage tuned, and weights that it pretrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chestflow.config import Params
from chestflow.evaluation import stage_figures
from chestflow.evaluation.report_data import Table
from chestflow.evaluation.report_infection import drawn
from chestflow.files import read_json
from chestflow.training import history, uses

Picture = tuple[bytes, str]


def why(found: dict[str, Any]) -> str:
    """Why a tau is in use, from ``out/tune/tau/<run>/<fold>.json``."""
    paper, tuned, gain = found["paper"]["tau"], found["tuned"]["tau"], found["gain"]
    if tuned == paper:
        return "the paper's was the best of those tried"
    if gain["value"] is None:
        return f"the gain of {tuned:.2f} cannot be measured"
    interval = "" if gain["lo"] is None else f" [{gain['lo']:+.3f}, {gain['hi']:+.3f}]"
    said = f"gain of {tuned:.2f} on patients left out {gain['value']:+.3f}{interval}"
    return f"{said}: {'above zero' if found['use'] == 'tuned' else 'not above zero beyond doubt'}"


def taus(params: Params, out: Path) -> dict[str, Any] | None:
    """Each run's search for tau; None where no run has one.

    Raises:
        DataError: a search has not run.
    """
    heads = ["run", "fold", "in use", "tuned", "its value", "paper's", "value of the paper's", "criterion", "trials",
             "given up", "why"]  # fmt: skip
    table = Table(heads, text=["run", "fold", "criterion"], wrap=["why"])
    pictures: list[Picture] = []
    for run in params.runs:
        if not uses.tau_is_tuned(params, run):
            continue
        for fold in params.folds:
            found = read_json(uses.tau_evidence(run, fold, out))
            given_up = sum(bool(trial["pruned"]) for trial in found["trials"])
            shown: list[Any] = [f"{found['tau']:.2f}", f"{found['tuned']['tau']:.2f}", found["tuned"]["value"]]
            shown += [f"{found['paper']['tau']:.2f}", found["paper"]["value"], found["criterion"]]
            table.rows.append([run, str(fold), *shown, str(len(found["trials"])), str(given_up), why(found)])
            title = f"tau of {run}, fold {fold}"
            picture = drawn(lambda path, found=found, title=title: stage_figures.tau_curve(found, path, title))  # type: ignore[misc]
            pictures.append((picture, f"{title}: {found['tau']:.2f} in use"))
    table.note = (
        "Values are of the criterion on the tune role, after the few epochs of a trial. Its gain over the paper's is"
        " measured on patients that a bootstrap left out."
    )
    return {"table": table, "plots": pictures} if table.rows else None


def pretrainings(params: Params, out: Path) -> dict[str, Any] | None:
    """The pretrainings whose weights start a run; None where no run takes any.

    Raises:
        DataError: a pretraining has not run.
    """
    users: dict[str, list[str]] = {}
    for run, section in params.runs.items():
        if "weights" in section.uses:
            users.setdefault(section.uses["weights"], []).append(run)
    heads = ["pretraining", "backbone", "images", "of cohort", "began", "epochs", "last loss", "finds its own key",
             "starts"]  # fmt: skip
    table = Table(heads, text=["pretraining", "backbone", "of cohort", "began"], wrap=["starts"])
    pictures: list[Picture] = []
    for name, runs in users.items():
        folder = out / "pretrain" / name
        about, epochs = read_json(folder / "pretrain.json"), history.read(folder / "history.csv")
        settings, last = about["settings"], about["last"]
        began = settings["weights"] or "at random"
        began = began if began in ("imagenet", "at random") else "from a file"
        shown = [settings["backbone"], str(about["images"]), settings["cohort"], began, str(len(epochs))]
        table.rows.append([name, *shown, last["loss"], last["found"], ", ".join(runs)])

        def draw(path: Path, epochs: Any = epochs, name: str = name) -> None:
            stage_figures.loss_curve(epochs, path, f"pretraining {name}")

        pictures.append((drawn(draw), f"{name}: contrastive loss by epoch"))
    table.note = (
        "MoCo v2 without labels, on pictures that are for training (or unlabelled) in each trained fold. The loss is"
        " lowest at the start, while the queue holds random vectors: it chooses no epoch."
    )
    return {"table": table, "plots": pictures} if table.rows else None
