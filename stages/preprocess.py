"""Stage preprocess@recipe: one memory-mapped pack of images, or volumes, with their masks."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.data.pack_building import build
from chestflow.errors import one_line_errors
from chestflow.files import read_parquet

OUT = Path("out")


def main(name: str) -> None:
    recipe = load().recipes[name]
    build(read_parquet(OUT / "manifest.parquet"), recipe.model_dump(), OUT / "segment" / "masks", OUT / "packs" / name)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1])
