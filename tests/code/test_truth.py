"""What pictures call a lesion: outlines and boxes of the source, and never what a network marked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest

from chestflow.data.packs import Pack
from chestflow.evaluation.gallery import gallery
from chestflow.evaluation.heatmap_grid import Maps
from chestflow.evaluation.localisation import localise_cases
from chestflow.evaluation.report import TEMPLATES
from chestflow.evaluation.truth import BOXES, NONE, OUTLINE, Truth
from chestflow.files import ATTENTION_FILES, write_json, write_parquet
from chestflow.segmentation import places
from tests.code.test_heatmap_grid import params

#: Pictures by who made their infection mask; of the last two the source outlines lesions too, of the very last none.
FROM = {
    "source": "source", "network": "network", "boxes": "boxes", "none": "none", "replaced": "network",
    "nothing": "network",
}  # fmt: skip
OUTLINED = ["source", "replaced", "nothing"]
KINDS = [OUTLINE, NONE, BOXES, NONE, OUTLINE, OUTLINE]
LINES = [True, False, True, False, True, False]
SIDE, COUNT = 64, len(FROM)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A pack whose pictures have the same infection, each by another origin, with one run's maps: hot elsewhere."""
    pack = tmp_path / "packs" / "small"
    pack.mkdir(parents=True)
    np.save(pack / "data.npy", np.full((COUNT, SIDE, SIDE), 40, np.uint8))
    masks = np.zeros((COUNT, SIDE, SIDE), np.uint8)
    masks[:, 16:40, 16:40] = 2
    masks[0, 16:40, 16:40] |= 4
    masks[4, 48:64, 48:64] |= 4
    np.save(pack / "masks.npy", masks)
    ids, known = list(FROM), [origin in ("source", "network") for origin in FROM.values()]
    index = {"row": range(COUNT), "image_id": ids, "has_lung": False, "has_infection": known}
    write_parquet(pack / "index.parquet", pd.DataFrame(index))
    write_json(pack / "recipe.json", {"modality": "cxr", "size": [SIDE, SIDE]})
    table = pd.DataFrame({"image_id": ids, "ratio": np.nan, "infection_from": FROM.values()})
    table["outlined"] = table["image_id"].isin(OUTLINED)
    write_parquet(places.segmented(tmp_path, "cxr") / "ratio.parquet", table)
    folder = tmp_path / "predictions" / "one" / "0"
    answers = pd.DataFrame({"image_id": ids, "p_rest": 0.5, "p_covid19": 0.5})
    heat = np.zeros((COUNT, 4, 4), np.float16)
    heat[:, 3, 3] = 1
    for role, file in ATTENTION_FILES.items():
        write_parquet(folder / f"{role}.parquet", answers)
        np.save(folder / file, heat)
    return tmp_path


def outlined(content: bytes) -> bool:
    """Whether there is anything turquoise in a picture, as JPEG leaves it."""
    blue, green, red = np.moveaxis(cv2.imdecode(np.frombuffer(content, np.uint8), 1).astype(int), -1, 0)
    return bool((blue + green - 2 * red > 150).any())


def test_a_networks_mask_is_no_truth(out: Path) -> None:
    truth = Truth(Pack.open(out / "packs" / "small"), out)
    assert [truth.kind(name) for name in FROM] == KINDS
    bits = np.array([[0, 1, 3, 7, 5]], np.uint8)
    outlined = [[False, False, False, True, True]]
    for name in OUTLINED:
        assert truth.lesion(name, bits).tolist() == outlined
    assert truth.lesion("boxes", bits).tolist() == [[False, False, True, True, False]]
    assert truth.lesion("network", bits) is truth.lesion("none", bits) is None
    assert truth.lesion("source", None) is None
    assert truth.lesion("source", np.full((2, 2), 1, np.uint8)).sum() == 0  # lung alone
    assert truth.kind("of another pack") == NONE


@pytest.mark.parametrize("role", ["test", "external"])
def test_attention_is_held_against_the_source_alone(out: Path, role: str) -> None:
    cases = pd.DataFrame({"fold": 0, "image_id": list(FROM)})
    settings = SimpleNamespace(attention_threshold=0.5, box_threshold=0.5)
    found = localise_cases(cases, "one", out / "packs" / "small", out, settings, role).set_index("image_id")
    assert found["truth"].to_dict() == {"source": OUTLINE, "boxes": BOXES, "replaced": OUTLINE, "nothing": OUTLINE}
    # the map is hot where the source outlines a lesion and a network marks none
    np.testing.assert_array_equal(found["pointing"], [0, 0, 1, np.nan])
    assert found.loc["replaced", "iou"] > 0.5
    assert found["lesion_share"].tolist() == [(24 / SIDE) ** 2, (24 / SIDE) ** 2, (16 / SIDE) ** 2, 0]
    assert np.isnan(found.loc["nothing", "iou"])


def test_without_a_truth_there_are_the_lungs(out: Path) -> None:
    pack = out / "packs" / "small"
    write_parquet(pack / "index.parquet", Pack.open(pack).index.assign(has_lung=True))
    masks = np.load(pack / "masks.npy")
    masks[:, 32:, :] |= 1
    np.save(pack / "masks.npy", masks)
    settings = SimpleNamespace(attention_threshold=0.5, box_threshold=0.5)
    cases = pd.DataFrame({"fold": 0, "image_id": list(FROM)})
    found = localise_cases(cases, "one", pack, out, settings).set_index("image_id").loc["network"]
    assert (found["truth"], found["lesion_share"]) == (NONE, 0)
    assert np.isnan(found["iou"])
    assert found["energy_lung"] > 0.9


def test_the_gallery_outlines_the_source_alone_and_names_boxes(out: Path) -> None:
    cases = pd.DataFrame({"fold": 0, "image_id": list(FROM), "caption": list(FROM)})
    found = gallery(cases, "one", Pack.open(out / "packs" / "small"), out, most=COUNT)
    assert [outlined(shown.jpeg) for shown in found] == LINES
    captions = [f"{name}, line: the source's boxes" if name == "boxes" else name for name in FROM]
    assert [shown.caption for shown in found] == captions


def test_so_do_the_grids(out: Path) -> None:
    column = Maps("one", 0, params({"one": "one"}), out)
    assert [column.picture(name)[1] is not None for name in FROM] == [kind != NONE for kind in KINDS]
    assert [outlined(column.cell(name, "covid19").content) for name in FROM] == LINES
    assert [column.line(name) for name in FROM] == ["", "", ", boxes", "", "", ""]


def test_the_page_promises_no_more() -> None:
    page = (TEMPLATES / "report.html.j2").read_text()
    assert "true lesion" not in page
    assert page.count("as the image's source outlines it") == 2
