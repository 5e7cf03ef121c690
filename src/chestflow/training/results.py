"""Writing what a training leaves: the network, its history, its predictions and where its inputs lay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.files import ATTENTION_FILES, EMBEDDING_FILE, atomic_path, write_json, write_parquet
from chestflow.training import history

if TYPE_CHECKING:
    from chestflow.training.engine import FitResult, Log
    from chestflow.training.inference import Inferred
    from chestflow.training.loader import PackLike


def write_results(
    result: FitResult,
    pack: PackLike,
    roles: dict[str, pd.DataFrame],
    description: dict[str, Any],
    out: Path,
    batch_size: int,
    log: Log | None,
) -> None:
    """Predict with the best weights and write everything; all processes predict, the first one writes."""
    from safetensors.torch import save_file

    from chestflow.training import embedding, restore
    from chestflow.training.inference import infer

    found = {
        role: infer(
            result.network,
            pack,
            table["row"].to_numpy(),
            device=result.device,
            batch_size=batch_size,
            amp=result.amp,
            attention=role in ATTENTION_FILES,
            world=result.world,
        )
        for role, table in roles.items()
        if len(table)
    }
    if result.world.rank:
        return
    where = Path(description["run"]) / str(description["fold"])
    predictions, trained = out / "predictions" / where, out / "train" / where
    for role in found.keys() - {"train"}:
        table = predictions_table(roles[role], role, found[role], description)
        write_parquet(predictions / f"{role}.parquet", table)
    for role in ATTENTION_FILES.keys() & found.keys():
        heat = found[role].attention
        if heat is not None:
            with atomic_path(predictions / ATTENTION_FILES[role]) as temporary, open(temporary, "wb") as stream:
                np.save(stream, heat)
    if "test" in found:
        modality, classes = description["input"]["modality"], max(2, len(description["task"]["classes"]))
        embedding.store(predictions / EMBEDDING_FILE, found["test"].embedding, modality, classes)
    unusual = embedding.statistics(found["train"].embedding, found["tune"].embedding)
    area = embedding.lung_area_range(pack, roles["train"]["row"].to_numpy())
    if area is not None:
        unusual["lung_area_range"] = area
    with atomic_path(trained / "embedding.safetensors") as temporary:
        save_file(unusual, temporary)
    history.write(trained / "history.csv", result.epochs)
    write_json(trained / "run.json", {"mlflow_run_id": getattr(log, "run_id", None)})
    restore.save_network(trained, result.network, description)


def predictions_table(table: pd.DataFrame, role: str, found: Inferred, description: dict[str, Any]) -> pd.DataFrame:
    """One row per image in the table's order: who, logits and probabilities per class; target in tune alone."""
    classes = list(description["task"]["classes"])
    result = pd.DataFrame(
        {
            "run": description["run"],
            "task": description["task"]["name"],
            "fold": description["fold"],
            "role": role,
            "image_id": table["image_id"].to_numpy(),
            "patient_id": table["patient_id"].to_numpy(),
        }
    )
    p = _softmax(found.logits)
    for index, name in enumerate(classes):
        result[f"logit_{name}"] = found.logits[:, index].astype(np.float64)
    for index, name in enumerate(classes):
        result[f"p_{name}"] = p[:, index]
    if role == "tune":
        result["target"] = table["target"].to_numpy()
    return result


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
