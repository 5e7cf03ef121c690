"""Five folds of Inf-Net, or Semi-Inf-Net, on the 50 labelled slices of COVID-SemiSeg.

The set names no patients, so folds keep apart the same pictures only, and the figures may be optimistic. The published
0.682 (Inf-Net) and 0.739 (Semi-Inf-Net) are Dice on another 48 slices, from a pretrained backbone: no comparison like
with like. Per fold and over all slices: Dice, sensitivity, specificity, S- and E-measure, MAE, 95% Hausdorff in pixels.

    python benchmarks/covid_semiseg_folds.py data/covid_semiseg --backbone resnet18 --size 352 --epochs 30 --pseudo

An interrupted run goes on from its last epoch when ``--keep`` names a folder.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SHOWN = ("dice", "sensitivity", "specificity", "s_measure", "e_measure", "mae", "hd95")


def table_of(root: Path, limit: int | None, unlabelled: int | None, workers: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Manifest and groups: all slices, or the first few with masks and without."""
    from chestflow.data.groups import group_images
    from chestflow.data.ingest import ingest
    from chestflow.files import read_parquet
    from chestflow.segmentation.reading import with_paths

    with tempfile.TemporaryDirectory() as folder:
        ingest("covid_semiseg", root, Path(folder), id_key="benchmark", workers=workers)
        manifest = read_parquet(Path(folder) / "manifest.parquet")
    masked = with_paths(manifest["infection_mask"])
    manifest = pd.concat([manifest[masked].head(limit or len(manifest)), manifest[~masked].head(unlabelled or 10**9)])
    manifest = manifest.sort_values("image_id", ignore_index=True)
    return manifest, group_images(manifest).table


def run(asked: argparse.Namespace) -> dict[str, Any]:
    """Train and measure fold by fold."""
    from chestflow.config_segmentation import InfectionSlices, PseudoLabels
    from chestflow.data.assignment import folds, stream
    from chestflow.data.references import LESIONS
    from chestflow.segmentation.infection_slices import SliceTraining, unlabelled
    from chestflow.segmentation.planning import Plan, candidates

    own = ["covid_semiseg"]
    pseudo = PseudoLabels(
        sets=own if asked.pseudo else [], chunk=asked.chunk, epochs=asked.round_epochs, batch_size=asked.batch,
        final=asked.final, soft_targets=asked.soft,
    )  # fmt: skip
    settings = InfectionSlices(
        sets=own, backbone=asked.backbone, weights=asked.weights, channel=asked.channel, size=asked.size,
        scales=asked.scales, epochs=asked.epochs, lr=asked.lr, batch_size=asked.batch, schedule=asked.schedule,
        weighting=asked.weighting, pseudo=pseudo, kinds=asked.kinds, score_norm=not asked.no_score_norm,
        amp=asked.amp,
    )  # fmt: skip
    manifest, groups = table_of(asked.root, asked.limit, asked.unlabelled, asked.workers)
    table = candidates(manifest, groups, "ct_slice", own, "infection_mask")
    table = table.merge(manifest[["image_id", "lung_mask"]], on="image_id")
    names = table["group_id"].to_numpy(object)
    fold_of = folds(np.full(len(table), "covid19", object), names, asked.folds, stream(asked.seed, "covid_semiseg"))
    rows: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    for fold in range(asked.folds):
        began = time.perf_counter()
        held = fold_of == fold
        plan = Plan("held_out", table.assign(part=held.astype(int)))
        training = SliceTraining(
            plan, settings, seed=asked.seed, threads=asked.threads, workers=asked.workers, checkpoint_root=asked.keep
        )
        barred = set(table.loc[held, "group_id"])
        pool = unlabelled(manifest, groups, settings, barred) if asked.pseudo else []
        loop, result, _ = training.train(~held, pool)
        found = training.measure(result.model, held)
        rows += [{"fold": fold, "slice": one.image_id, **one.metrics} for one in found]
        told += [
            {"fold": fold, "slice": one.image_id, "kind": LESIONS[kind], **metrics}
            for one in found
            for kind, metrics in one.kinds.items()
        ]
        loop.done()
        seconds = time.perf_counter() - began
        mine = pd.DataFrame([row for row in rows if row["fold"] == fold])
        text = " ".join(f"{name} {mine[name].mean():.3f}" for name in SHOWN)
        print(f"fold {fold}: {len(mine)} slices, {text}, {seconds:.0f} s", file=sys.stderr, flush=True)
    cases = pd.DataFrame(rows)
    by_fold = cases.groupby("fold")[list(SHOWN)].mean()
    return {
        "settings": settings.model_dump(),
        "slices": len(cases),
        "groups": int(table["group_id"].nunique()),
        "unlabelled": len(pool),
        "folds": {str(fold): {name: _plain(row[name]) for name in SHOWN} for fold, row in by_fold.iterrows()},
        "all": _over(cases, table),
        "kinds": {kind: _over(part, table) for kind, part in pd.DataFrame(told).groupby("kind")} if told else {},
        "note": "grouped by picture only: the set names no patients",
    }


def _over(cases: pd.DataFrame, table: pd.DataFrame) -> dict[str, list[float | None]]:
    """Each metric over slices, with an interval by group."""
    from chestflow.evaluation.segmentation_metrics import summarise

    groups = cases["slice"].map(table.set_index("image_id")["group_id"])
    whole = summarise(cases, list(groups), rng=np.random.default_rng(0))
    return {name: [_plain(whole[name].value), _plain(whole[name].lo), _plain(whole[name].hi)] for name in SHOWN}


def _plain(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the set's folder, which holds TrainingSet/")
    parser.add_argument("--backbone", choices=("res2net50", "resnet18"), default="resnet18")
    parser.add_argument("--weights", help="state dict of the backbone; from scratch without it")
    parser.add_argument("--channel", type=int, default=32)
    parser.add_argument("--size", type=int, default=352)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.75, 1.0, 1.25])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--schedule", choices=("constant", "step", "compounding", "cosine"), default="step")
    parser.add_argument("--weighting", choices=("applied", "cancelled"), default="applied")
    parser.add_argument("--pseudo", action="store_true", help="with Algorithm 1 on the unlabelled slices")
    parser.add_argument("--chunk", type=int, default=100)
    parser.add_argument("--round-epochs", type=int, default=9)
    parser.add_argument("--final", choices=("paper", "pretrain_finetune"), default="paper")
    parser.add_argument("--amp", choices=("off", "bf16", "native"), default="off", help="precision of the training")
    parser.add_argument("--kinds", action="store_true", help="with the second head: ground glass, consolidation")
    parser.add_argument("--no-score-norm", action="store_true", help="without the batch norm behind each map")
    parser.add_argument("--soft", action="store_true", help="soft pseudo labels")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=int, help="labelled slices, for a quick look")
    parser.add_argument("--unlabelled", type=int, help="unlabelled slices, for a quick look")
    parser.add_argument("--keep", type=Path, help="where an interrupted run goes on from")
    found = run(parser.parse_args())
    for name in SHOWN:
        value, low, high = found["all"][name]
        print(f"{name:12} {value} [{low}, {high}]", file=sys.stderr)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
