"""Stage segment@modality: lung and infection masks on the original grid, and the infection ratio."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.errors import one_line_errors
from chestflow.files import read_parquet
from chestflow.segmentation import places
from chestflow.segmentation.infection import load as load_segmenter
from chestflow.segmentation.run import segment

OUT = Path("out")


def main(modality: str) -> None:
    params = load()
    manifest, splits, groups = (read_parquet(OUT / f"{name}.parquet") for name in ("manifest", "splits", "groups"))
    splits = splits[splits["fold"].isin(params.folds)]
    trained = load_segmenter(places.infection(OUT, modality)) if modality in places.INFECTED else None
    segment(
        modality,
        manifest,
        splits,
        groups,
        params.segment,
        OUT,
        seed=params.seed,
        threads=params.engine.threads,
        infection=trained if trained and trained.modalities else None,
    )


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1])
