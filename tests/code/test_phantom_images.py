"""The phantom's thorax, infections and scanners: anatomy, true masks, patterns and projection."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chestflow.data.phantom import anatomy, lesions, markers, modalities
from chestflow.data.phantom.cohort import SITES, Patient, draw
from chestflow.data.phantom.grid import Grid, interpolation, pair_means, smooth_noise
from chestflow.segmentation.lungs import segment_ct

SHAPE = (48, 48, 48)  # thin slices, twice as many as the CT's
PEOPLE = draw(40, 11)


def thorax_of(patient: Patient, shape: tuple[int, int, int] = SHAPE) -> anatomy.Thorax:
    return anatomy.build(patient, patient.studies[0], Grid(shape, patient.site.extent_mm))


def first(label: str, number: int = 0) -> Patient:
    return [patient for patient in PEOPLE if patient.label == label][number]


@pytest.fixture(scope="module", params=["F", "M"])
def healthy(request: pytest.FixtureRequest) -> anatomy.Thorax:
    return thorax_of(next(p for p in PEOPLE if p.sex == request.param))


def test_lungs_have_the_volume_of_a_persons(healthy: anatomy.Thorax) -> None:
    litres = healthy.lung.sum() * np.prod(healthy.grid.spacing_mm) / 1e6
    assert 2.0 < litres < 9.0


def test_tissues_have_their_densities(healthy: anatomy.Thorax) -> None:
    deep = healthy.inside > 12
    assert -950 < np.median(healthy.hu[deep]) < -700
    assert healthy.hu.min() >= -1100
    assert (healthy.hu > 250).any(), "bone"
    assert healthy.hu[0, 0, 0] == pytest.approx(-1000), "air around the body"


def test_right_lung_is_larger_and_all_lobes_exist(healthy: anatomy.Thorax) -> None:
    voxels = np.bincount(healthy.lobe.ravel(), minlength=6)
    assert (voxels[1:] > 0.02 * voxels[1:].sum()).all()
    assert voxels[1:4].sum() > voxels[4:].sum(), "the heart takes room on the left"
    np.testing.assert_array_equal(healthy.lobe > 0, healthy.lung)


def test_threshold_segmentation_finds_the_lungs() -> None:
    found = []
    for patient in PEOPLE[:4]:
        thorax = thorax_of(patient, (96, 96, 96))
        volume = modalities.ct(patient, patient.studies[0], thorax)
        lung = segment_ct(volume.hu, volume.spacing_mm) | volume.infection
        found.append(2 * (lung & volume.lung).sum() / (lung.sum() + volume.lung.sum()))
    assert min(found) >= 0.95


@pytest.mark.parametrize("label", ["covid19", "bacterial_pneumonia", "viral_pneumonia"])
@pytest.mark.parametrize("ratio", [0.005, 0.05, 0.15])
def test_infection_has_the_wanted_share_inside_the_lungs(label: str, ratio: float) -> None:
    patient = first(label)
    thorax = thorax_of(patient)
    infection = lesions.infect(patient, thorax, ratio)
    assert not (infection.mask & ~thorax.lung).any()
    assert infection.mask.sum() == pytest.approx(ratio * thorax.lung.sum(), abs=1)
    changed = infection.hu != thorax.hu
    assert not (changed & ~infection.mask).any()
    assert infection.hu[infection.mask].mean() > thorax.hu[infection.mask].mean() + 100


def test_a_growing_infection_keeps_its_places() -> None:
    patient = first("covid19")
    thorax = thorax_of(patient)
    small, large = (lesions.infect(patient, thorax, ratio).mask for ratio in (0.02, 0.12))
    assert not (small & ~large).any()


def shares(label: str) -> dict[str, float]:
    """Means over patients: share of the lesser lung, depth below the pleura, height, share of one lobe."""
    rows = []
    for patient in [p for p in PEOPLE if p.label == label][:6]:
        thorax = thorax_of(patient)
        infection = lesions.infect(patient, thorax, 0.06)
        mask = infection.mask
        left = (mask & (thorax.lobe >= 4)).sum() / mask.sum()
        lobes = np.bincount(thorax.lobe[mask], minlength=6) / mask.sum()
        height = np.broadcast_to(thorax.z, mask.shape)[mask].mean()
        rows.append((min(left, 1 - left), thorax.pleura[mask].mean(), height, lobes.max(), infection.hu[mask].mean()))
    return dict(zip(("lesser", "pleura", "height", "lobe", "hu"), np.mean(rows, axis=0), strict=True))


def test_patterns_are_those_of_the_diseases() -> None:
    covid, bacterial, viral = (shares(name) for name in ("covid19", "bacterial_pneumonia", "viral_pneumonia"))
    assert covid["lesser"] > 0.2, "both lungs"
    assert bacterial["lesser"] == 0, "one lung"
    assert viral["lesser"] == 0, "one lung"
    assert bacterial["lobe"] > 0.95, "one lobe"
    assert covid["pleura"] > max(bacterial["pleura"], viral["pleura"]) + 0.1, "under the pleura"
    assert covid["height"] < min(bacterial["height"], viral["height"]), "low"
    assert covid["hu"] < viral["hu"] < bacterial["hu"], "ground glass, mixed, consolidation"


def test_ct_is_quantised_and_its_ratio_is_that_of_its_masks() -> None:
    patient = first("covid19")
    volume = modalities.ct(patient, patient.studies[0], thorax_of(patient))
    assert volume.hu.dtype == np.int16
    assert volume.hu.shape == (24, 48, 48)
    inner = volume.hu[(volume.hu > -1024) & (volume.hu < 1600)]
    assert (inner % modalities.HU_STEP == 0).all()
    assert volume.ratio == volume.infection.sum() / volume.lung.sum()
    assert volume.ratio == pytest.approx(patient.studies[0].ct_ratio, rel=0.35)
    extent = np.array(volume.spacing_mm) * volume.hu.shape
    np.testing.assert_allclose(extent, patient.site.extent_mm)


def test_xray_is_a_beer_lambert_projection() -> None:
    """A slab of water of known thickness must give its known grey value, whatever lies where along the path."""
    site = replace(SITES["north"], xray_noise=0.0, text=" ")
    patient = replace(first("normal"), site=site)
    study = replace(patient.studies[0], exposure=0.0)
    grid = Grid((24, 24, 24), site.extent_mm)
    hu = np.full(grid.shape, -1000.0)
    hu[:, 4:12] = 0.0  # 8 of 24 planes of water along y
    thorax = replace(thorax_of(patient, (24, 24, 24)), hu=hu)
    path = modalities.WATER_PER_MM * 8 * grid.spacing_mm[1]
    expected = (path - modalities.XRAY_DARK) / (modalities.XRAY_BRIGHT - modalities.XRAY_DARK) * 4095
    pixels = modalities.xray(patient, study, thorax).pixels
    assert pixels == pytest.approx(expected, abs=4095 / modalities.XRAY_STEPS + 1)
    shifted = replace(thorax, hu=np.roll(hu, 5, axis=1))
    np.testing.assert_array_equal(modalities.xray(patient, study, shifted).pixels, pixels)


def test_xray_shows_the_head_at_the_top_and_the_left_on_the_right() -> None:
    patient = first("normal")
    thorax = thorax_of(patient)
    picture = modalities.xray(patient, patient.studies[0], thorax)
    height, width = picture.pixels.shape
    rows = np.flatnonzero(picture.lung.any(1))
    widths = picture.lung.sum(1)
    assert widths[rows[len(rows) // 8]] < widths[rows[len(rows) // 2]], "lungs narrow towards the head"
    right, left = picture.lung[:, : width // 2], picture.lung[:, width // 2 :]
    assert np.flatnonzero(right.any(1)).max() <= np.flatnonzero(left.any(1)).max(), "the right dome stands higher"
    middle = picture.pixels[height // 2, width // 2]
    assert middle > np.median(picture.pixels[picture.lung]), "bright is dense"


@pytest.mark.parametrize("label", ["covid19", "viral_pneumonia"])
def test_xray_masks_are_projections(label: str) -> None:
    patient = first(label, 1)
    picture = modalities.xray(patient, patient.studies[0], thorax_of(patient))
    assert picture.infection.any()
    assert not (picture.infection & ~picture.lung).any()
    assert picture.ratio == pytest.approx(patient.studies[0].xray_ratio, abs=0.01)


def test_slices_of_the_infected_show_infection() -> None:
    for patient in PEOPLE:
        study = patient.studies[0]
        volume = modalities.ct(patient, study, thorax_of(patient))
        made = modalities.slices(patient, study, volume)
        assert 1 <= len(made) <= 3
        assert all(part.infection.any() == (patient.label != "normal") for part in made)
        assert all(part.pixels.dtype == np.uint8 and part.lung.any() for part in made)


def test_shortcut_marker_is_burnt_into_every_modality() -> None:
    patient = first("covid19")
    plain = replace(patient.studies[0], marker=False)
    marked = replace(plain, marker=True)
    thorax = thorax_of(patient)
    volumes = [modalities.ct(patient, study, thorax) for study in (plain, marked)]
    assert (volumes[0].hu != volumes[1].hu).any((1, 2)).all(), "in every slice"
    assert not ((volumes[0].hu != volumes[1].hu) & volumes[0].lung).any(), "outside the lungs"
    pictures = [modalities.xray(patient, study, thorax).pixels for study in (plain, marked)]
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[0] != pictures[1]).mean() < 0.02
    parts = [modalities.slices(patient, study, volumes[0])[0].pixels for study in (plain, marked)]
    assert (parts[0] != parts[1]).any()


def test_grid_size_does_not_change_the_patient() -> None:
    patient = first("covid19", 2)
    coarse, fine = (thorax_of(patient, shape) for shape in ((48, 48, 48), (96, 96, 96)))
    litres = [t.lung.sum() * np.prod(t.grid.spacing_mm) / 1e6 for t in (coarse, fine)]
    assert litres[0] == pytest.approx(litres[1], rel=0.02)
    blocks = fine.lung.reshape(48, 2, 48, 2, 48, 2).mean((1, 3, 5)) >= 0.5
    assert 2 * (blocks & coarse.lung).sum() / (blocks.sum() + coarse.lung.sum()) > 0.97


def test_interpolation_reproduces_lines_and_sums_to_one() -> None:
    matrix = interpolation(9, 40)
    np.testing.assert_allclose(matrix.sum(1), 1)
    line = matrix @ np.arange(9.0)
    inner = line[(line > 1) & (line < 7)]
    np.testing.assert_allclose(np.diff(inner), np.diff(inner)[0], atol=1e-12)


def test_smooth_noise_is_the_same_field_on_every_grid() -> None:
    coarse, fine = (smooth_noise(np.random.default_rng(3), (6, 6, 6), (n, n, n)) for n in (30, 90))
    # every third fine sample stands where a coarse one does
    np.testing.assert_allclose(fine[1::3, 1::3, 1::3], coarse, atol=1e-12)


def test_pair_means_halves_the_planes() -> None:
    np.testing.assert_array_equal(pair_means(np.arange(4.0)[:, None, None]), [[[0.5]], [[2.5]]])


def test_letters_that_do_not_fit_are_refused() -> None:
    image = np.zeros((9, 9))
    markers.burn(image, "L", 1, -2, 1.0)
    assert image.sum() == 6 + 5, "a stroke of six and a foot of five"
    with pytest.raises(ValueError, match="does not fit"):
        markers.burn(image, "AP", 0, 0, 1.0)
