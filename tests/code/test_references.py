"""References to parts of images and masks: written and read back, and what the readers make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chestflow.data.references import LESIONS, Reference, mask_reference, parse_mask_reference
from chestflow.imaging.read import Unreadable, read_classes, read_mask
from tests.code.image_files import write_png
from tests.data.ct_sets import jpeg, lesions, nifti, palette, rgba


@given(
    st.builds(
        Reference,
        path=st.sampled_from([Path("a/b.png"), Path("a@b/c@2.nii.gz"), Path("x@slice/y@value=.png")]),
        corner=st.none() | st.tuples(st.integers(0, 9999), st.integers(0, 9999)),
        resized=st.booleans(),
        slice=st.none() | st.integers(0, 999),
        values=st.lists(st.integers(0, 255), max_size=3).map(tuple),
        lesion=st.none() | st.sampled_from(list(LESIONS)),
        window=st.none() | st.tuples(st.integers(-2000, 0).map(float), st.integers(1, 2000).map(float)),
    )
)
def test_what_is_written_is_read_back(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference


def test_a_part_stands_once_and_at_the_end() -> None:
    assert Reference.parse("a@1,2@3,4") == Reference(Path("a@1,2"), corner=(3, 4))
    assert Reference.parse("a@resized/b.png") == Reference(Path("a@resized/b.png"))
    assert parse_mask_reference(mask_reference(Path("m.png"), 4, 5)) == (Path("m.png"), (4, 5))
    assert parse_mask_reference(mask_reference(Path("m.png"), values=(2, 3), lesion=1)) == (Path("m.png"), None)
    assert mask_reference(Path("m.png"), resized=True) == "m.png@resized"


def test_classes_of_pictures_and_volumes(tmp_path: Path) -> None:
    classes = lesions()
    flat = [palette(tmp_path / "p.png", classes), write_png(tmp_path / "l.png", classes)]
    for path in flat:
        for value in (1, 2, 3):
            assert (read_mask([mask_reference(path, values=(value,))], classes.shape) == (classes == value)).all()
        assert (read_mask([mask_reference(path, values=(1, 3))], classes.shape) == np.isin(classes, (1, 3))).all()
        assert (read_mask([path], classes.shape) == (classes > 0)).all()
    deep = nifti(tmp_path / "v.nii.gz", np.stack([classes, classes * 0, classes]))
    assert (read_mask([mask_reference(deep, values=(2,))], (3, 40, 48))[2] == (classes == 2)).all()
    assert (read_mask([mask_reference(deep, slice=2, values=(2,))], (40, 48)) == (classes == 2)).all()
    assert not read_mask([mask_reference(deep, slice=1)], (40, 48)).any()
    for path in (write_png(tmp_path / "c.png", rgba(classes)), jpeg(tmp_path / "j.png", classes)):
        with pytest.raises(Unreadable, match="unsupported"):
            read_mask([mask_reference(path, values=(1,))], classes.shape)


def test_a_map_of_classes(tmp_path: Path) -> None:
    mask = write_png(tmp_path / "m.png", lesions())
    named = [mask_reference(mask, values=(v,), lesion=c) for v, c in ((3, 2), (2, 1))]
    found = read_classes(named, (40, 48))
    assert found is not None
    assert (found == np.array([0, 0, 1, 2], np.uint8)[lesions()]).all()
    assert read_classes([*named, str(mask)], (40, 48)) is None  # one reference names no class
    assert read_classes([], (40, 48)) is None
    both = read_classes([mask_reference(mask, lesion=2), mask_reference(mask, values=(1,), lesion=1)], (40, 48))
    assert both is not None
    assert (both == 2 * (lesions() > 0)).all()  # where classes overlap, the highest
    with pytest.raises(Unreadable, match="mask_size"):
        read_classes(named, (40, 40))
