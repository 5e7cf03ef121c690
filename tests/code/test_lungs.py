"""CT lungs by threshold, on a thorax whose lungs are known."""

from dataclasses import replace

import numpy as np
import pytest

from chestflow.data.phantom import anatomy, modalities
from chestflow.data.phantom.cohort import Patient, draw
from chestflow.data.phantom.grid import Grid
from chestflow.segmentation.lungs import segment_ct

SHAPE, SPACING = (32, 80, 88), (6.0, 4.0, 4.0)


def thorax(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A body with two lungs cut off at the top and bottom slice, as in a cropped scan, and the lungs' true mask."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    hu = np.full(SHAPE, -1000.0)
    hu[(x / 0.9) ** 2 + (y / 0.75) ** 2 < 1] = 40
    lungs = np.zeros(SHAPE, dtype=bool)
    for side in (-1, 1):
        lungs |= ((x - side * 0.42) / 0.3) ** 2 + (y / 0.45) ** 2 + (z / 1.2) ** 2 < 1
    hu[lungs] = -820
    hu += np.random.default_rng(seed).normal(0, 25, SHAPE)
    return hu.astype(np.int16), lungs


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_finds_both_lungs_in_a_cropped_scan_and_not_the_air_around() -> None:
    hu, lungs = thorax()
    found = segment_ct(hu, SPACING)
    assert found.dtype == bool
    assert dice(found, lungs) >= 0.98
    assert found[0].any()
    assert found[-1].any()


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[Patient, modalities.Ct]]:
    """Patients with every disease and without, and their scans."""
    found = {}
    for patient in draw(16, seed=5):
        study = patient.studies[0]
        thorax_of = anatomy.build(patient, study, Grid((96, 96, 96), patient.site.extent_mm))
        found[patient.name] = (patient, modalities.ct(patient, study, thorax_of))
    return found


def test_dice_on_phantoms_with_every_disease(drawn: dict[str, tuple[Patient, modalities.Ct]]) -> None:
    found = {name: dice(segment_ct(scan.hu, scan.spacing_mm), scan.lung) for name, (_, scan) in drawn.items()}
    assert np.mean(list(found.values())) >= 0.95
    assert min(found.values()) >= 0.90, found


def test_vessels_and_small_lesions_inside_are_taken_back() -> None:
    hu, lungs = thorax()
    hu[14:18, 38:41, 58:61] = 30  # a vessel or nodule, 12 mm wide, inside the left lung
    assert lungs[14:18, 38:41, 58:61].all()
    assert segment_ct(hu, SPACING)[14:18, 38:41, 58:61].all()


def test_a_notch_at_the_wall_needs_the_closing() -> None:
    hu, lungs = thorax()
    column = 61  # through the middle of one lung
    front = int(np.flatnonzero(lungs[16, :, column])[0])
    notch = np.zeros(SHAPE, dtype=bool)
    notch[12:20, front : front + 3, column : column + 2] = True  # 8 mm wide, 12 mm deep, open to the chest wall
    notch &= lungs
    hu[notch] = 30
    assert segment_ct(hu, SPACING, closing_mm=0.0)[notch].mean() < 0.1
    assert segment_ct(hu, SPACING, closing_mm=12.0)[notch].mean() > 0.6


#: Infected shares of the lungs: up to the first every patient keeps the outline of its lungs, at the second most do.
KEPT, QUARTER = 0.18, 0.25


@pytest.fixture(scope="module")
def at_the_border() -> dict[float, dict[str, tuple[float, float]]]:
    """The first twelve of a seed with subpleural infection: Dice by share and name, without and with the convex wall.

    Of 84 such patients of three seeds all reach 0.97 with it at KEPT and 65 at QUARTER. The one worst there, 0.951, is
    among these twelve.
    """
    found: dict[float, dict[str, tuple[float, float]]] = {KEPT: {}, QUARTER: {}}
    for patient in draw(30, seed=1):
        if patient.label == "covid19":
            thorax_of = anatomy.build(patient, patient.studies[0], Grid((96, 96, 96), patient.site.extent_mm))
            for ratio, of in found.items():
                scan = modalities.ct(patient, replace(patient.studies[0], ct_ratio=ratio), thorax_of)
                without, with_wall = (
                    dice(segment_ct(scan.hu, scan.spacing_mm, convex_wall=wall), scan.lung) for wall in (False, True)
                )
                of[patient.name] = (without, with_wall)
    assert {len(of) for of in found.values()} == {12}
    return found


def test_lesions_at_the_border_of_up_to_a_sixth_of_the_lungs_cost_no_patient_its_outline(
    at_the_border: dict[float, dict[str, tuple[float, float]]],
) -> None:
    found = at_the_border[KEPT]
    assert min(after for _, after in found.values()) >= 0.97, found
    assert min(before for before, _ in found.values()) < 0.97, "the phantoms ask nothing of the convex wall"
    assert max(before - after for before, after in found.values()) < 0.01, found


def test_of_those_with_a_quarter_infected_two_thirds_keep_it_and_nobody_falls_below_095(
    at_the_border: dict[float, dict[str, tuple[float, float]]],
) -> None:
    found = at_the_border[QUARTER]
    before, after = np.array(list(found.values())).T
    assert (after >= 0.97).mean() >= 2 / 3, found
    assert after.mean() >= 0.97
    assert after.min() >= 0.95
    assert after.mean() > before.mean() + 0.015


def test_the_worst_phantom_known_gains_much_by_the_convex_wall(
    at_the_border: dict[float, dict[str, tuple[float, float]]],
) -> None:
    before, after = at_the_border[QUARTER]["PH0026"]
    assert after == min(with_wall for _, with_wall in at_the_border[QUARTER].values())
    assert after > before + 0.015


def test_the_convex_wall_leaves_healthy_lungs_alone(drawn: dict[str, tuple[Patient, modalities.Ct]]) -> None:
    scans = [scan for patient, scan in drawn.values() if patient.label == "normal"]
    assert scans
    for scan in scans:
        before, after = (
            dice(segment_ct(scan.hu, scan.spacing_mm, convex_wall=wall), scan.lung) for wall in (False, True)
        )
        assert after >= 0.97
        assert abs(after - before) < 0.005


def test_a_dense_wedge_at_the_side_wall_needs_the_convex_wall() -> None:
    hu, lungs = thorax()
    wedge = np.zeros(SHAPE, dtype=bool)
    wedge[8:24, 32:48, 68:] = True  # 64 mm high and deep, far wider than the closing
    wedge &= lungs
    hu[wedge] = 30
    assert segment_ct(hu, SPACING, convex_wall=False)[wedge].mean() < 0.3
    assert segment_ct(hu, SPACING)[wedge].mean() > 0.7
    # mirrored, the other lung's side wall is the other side
    mirrored = segment_ct(np.ascontiguousarray(hu[:, :, ::-1]), SPACING)[:, :, ::-1]
    assert mirrored[wedge].mean() > 0.7


def test_a_dent_towards_the_heart_stays() -> None:
    hu, lungs = thorax()
    heart = np.zeros(SHAPE, dtype=bool)
    heart[8:24, 32:48, 46:58] = True
    heart &= lungs
    hu[heart] = 30
    assert segment_ct(hu, SPACING)[heart].mean() < 0.3


def test_lungs_that_touch_are_told_apart_by_the_bodys_middle() -> None:
    hu, lungs = thorax()
    bridge = np.s_[16, 40, 40:50]
    hu[bridge] = -820
    touching = lungs.copy()
    touching[bridge] = True
    assert dice(segment_ct(hu, SPACING), lungs) >= 0.97


def test_bowel_gas_and_a_third_pocket_are_left_out() -> None:
    hu, lungs = thorax()
    hu[2:5, 38:42, 42:46] = -900  # small pocket between the lungs
    pocket = np.s_[2:5, 38:42, 42:46]
    assert not segment_ct(hu, SPACING)[pocket].any()
    assert dice(segment_ct(hu, SPACING), lungs) >= 0.98


def test_the_dome_of_the_diaphragm_is_not_lung() -> None:
    hu, lungs = thorax()
    dome = np.zeros(SHAPE, dtype=bool)
    dome[:6, 34:46, 56:68] = (
        True  # liver that rises into the lung from the lowest slice: a hole in every slice it is in
    )
    assert lungs[dome].all()
    hu[dome] = 60
    assert segment_ct(hu, SPACING)[dome].mean() < 0.2


def test_a_lobe_that_a_consolidation_cuts_off_stays() -> None:
    hu, lungs = thorax()
    hu[12:14, :, 44:] = 40  # a dense band through the whole of one lung
    parts = lungs.copy()
    parts[12:14, :, 44:] = False
    assert (segment_ct(hu, SPACING) & parts).sum() >= 0.95 * parts.sum()


def test_one_lung_is_enough() -> None:
    hu, lungs = thorax()
    left = lungs.copy()
    left[:, :, :44] = False
    hu[lungs & ~left] = 40
    assert dice(segment_ct(hu, SPACING), left) >= 0.98


@pytest.mark.parametrize("value", [-1000, 40])
def test_air_or_water_alone_has_no_lungs(value: int) -> None:
    assert not segment_ct(np.full(SHAPE, value, dtype=np.int16), SPACING).any()


def test_refuses_a_slice() -> None:
    with pytest.raises(ValueError, match="volume"):
        segment_ct(np.zeros((4, 4), dtype=np.int16), SPACING)
