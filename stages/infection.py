"""Stage infection@modality: trains the segmenter of infection that segment and a served model use."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.errors import one_line_errors
from chestflow.files import read_parquet
from chestflow.segmentation.infection_fitting import fit_infection
from chestflow.tracking.stage_runs import infection_run

OUT, CHECKPOINTS = Path("out"), Path(".checkpoints")


def main(modality: str) -> None:
    params = load()
    manifest, splits, groups = (read_parquet(OUT / f"{name}.parquet") for name in ("manifest", "splits", "groups"))
    with infection_run(params, modality, out=OUT, checkpoints=CHECKPOINTS) as log:
        fit_infection(
            modality,
            manifest,
            splits,
            groups,
            params.infection,
            params.segment,
            OUT,
            seed=params.seed,
            threads=params.engine.threads,
            folds=params.folds,
            checkpoint_root=CHECKPOINTS,
            log=log,
        )


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1])
