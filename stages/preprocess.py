"""Stage preprocess@recipe: one memory-mapped pack of images, or volumes, with their masks."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.data.pack_building import build
from chestflow.errors import one_line_errors
from chestflow.files import read_parquet
from chestflow.segmentation import places

OUT = Path("out")


def main(name: str) -> None:
    recipe = load().recipes[name]
    masks = places.masks(OUT, recipe.modality)
    build(read_parquet(OUT / "manifest.parquet"), recipe.model_dump(), masks, OUT / "packs" / name)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1])
