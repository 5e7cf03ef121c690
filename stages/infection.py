"""Stage infection: trains the segmenters of infection that segment and a served model use."""

from pathlib import Path

from chestflow.config import load
from chestflow.errors import one_line_errors
from chestflow.files import read_parquet
from chestflow.segmentation.infection_fitting import fit_infection
from chestflow.tracking.stage_runs import infection_run

OUT, CHECKPOINTS = Path("out"), Path(".checkpoints")


def main() -> None:
    params = load()
    manifest, splits, groups = (read_parquet(OUT / f"{name}.parquet") for name in ("manifest", "splits", "groups"))
    with infection_run(params, out=OUT, checkpoints=CHECKPOINTS) as log:
        fit_infection(
            manifest,
            splits[splits["fold"].isin(params.folds)],
            groups,
            params.infection,
            params.segment,
            OUT,
            seed=params.seed,
            threads=params.engine.threads,
            checkpoint_root=CHECKPOINTS,
            log=log,
        )


if __name__ == "__main__":
    with one_line_errors():
        main()
