"""What pictures call a lesion: outlines and boxes of the source, and never what a network marked."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chestflow.data.packs import Pack
from chestflow.evaluation.gallery import gallery
from chestflow.evaluation.heatmap_grid import Maps
from chestflow.evaluation.report import TEMPLATES
from chestflow.evaluation.truth import BOXES, NONE, OUTLINE, Truth
from chestflow.files import write_json, write_parquet
from chestflow.segmentation import places
from tests.code.test_heatmap_grid import params

FROM = ["source", "network", "boxes", "none"]
KINDS = [OUTLINE, NONE, BOXES, NONE]
SIDE = 64


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A pack whose four pictures have the same bits, each by another origin, with one run's maps."""
    pack = tmp_path / "packs" / "small"
    pack.mkdir(parents=True)
    np.save(pack / "data.npy", np.full((4, SIDE, SIDE), 40, np.uint8))
    masks = np.zeros((4, SIDE, SIDE), np.uint8)
    masks[:, 16:40, 16:40] = 2
    np.save(pack / "masks.npy", masks)
    known = [origin in ("source", "network") for origin in FROM]
    index = {"row": range(4), "image_id": FROM, "has_lung": False, "has_infection": known}
    write_parquet(pack / "index.parquet", pd.DataFrame(index))
    write_json(pack / "recipe.json", {"modality": "cxr", "size": [SIDE, SIDE]})
    table = pd.DataFrame({"image_id": FROM, "ratio": np.nan, "infection_from": FROM})
    write_parquet(places.segmented(tmp_path, "cxr") / "ratio.parquet", table)
    folder = tmp_path / "predictions" / "one" / "0"
    p = np.full(4, 0.5)
    write_parquet(folder / "test.parquet", pd.DataFrame({"image_id": FROM, "p_rest": p, "p_covid19": p}))
    np.save(folder / "attention.npy", np.zeros((4, 4, 4), np.float16))
    return tmp_path


def outlined(content: bytes) -> bool:
    """Whether there is anything turquoise in a picture, as JPEG leaves it."""
    blue, green, red = np.moveaxis(cv2.imdecode(np.frombuffer(content, np.uint8), 1).astype(int), -1, 0)
    return bool((blue + green - 2 * red > 150).any())


def test_a_networks_mask_is_no_truth(out: Path) -> None:
    truth = Truth(Pack.open(out / "packs" / "small"), out)
    bits = np.full((2, 2), 3, np.uint8)
    assert [truth.kind(name) for name in FROM] == KINDS
    assert [truth.lesion(name, bits) is not None for name in FROM] == [True, False, True, False]
    assert truth.lesion("source", None) is None
    assert truth.lesion("source", np.full((2, 2), 1, np.uint8)).sum() == 0  # lung alone


def test_the_gallery_outlines_the_source_alone_and_names_boxes(out: Path) -> None:
    cases = pd.DataFrame({"fold": 0, "image_id": FROM, "caption": FROM})
    found = gallery(cases, "one", Pack.open(out / "packs" / "small"), out)
    assert [outlined(shown.jpeg) for shown in found] == [True, False, True, False]
    assert [shown.caption for shown in found] == ["source", "network", "boxes, line: the source's boxes", "none"]


def test_so_do_the_grids(out: Path) -> None:
    column = Maps("one", 0, params({"one": "one"}), out)
    assert [column.picture(name)[1] is not None for name in FROM] == [True, False, True, False]
    assert [outlined(column.cell(name, "covid19").content) for name in FROM] == [True, False, True, False]
    assert [column.line(name) for name in FROM] == ["", "", ", boxes", ""]


def test_the_page_promises_no_more() -> None:
    page = (TEMPLATES / "report.html.j2").read_text()
    assert "true lesion" not in page
    assert page.count("as the image's source outlines it") == 2
