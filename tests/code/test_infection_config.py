"""What cannot be under `infection` in params.yaml is refused, in one line that names the setting."""

import copy
from pathlib import Path

import pytest

from chestflow import profiles
from chestflow.config import parse
from chestflow.errors import ConfigError


@pytest.fixture
def phantom(repository: Path) -> dict:
    return profiles.read("phantom", repository / "profiles")


@pytest.mark.parametrize(
    ("modality", "settings", "says"),
    [
        ("ct_slice", {"size": 360}, "infection.ct_slice.size"),
        ("ct_slice", {"size": 32}, "infection.ct_slice.size"),
        ("ct_slice", {"scales": []}, "infection.ct_slice.scales"),
        ("ct_slice", {"scales": [0]}, "infection.ct_slice.scales"),
        ("ct_slice", {"clip_value": 0}, "infection.ct_slice.clip_value"),
        ("ct_slice", {"weighting": "none"}, "infection.ct_slice.weighting"),
        ("ct_slice", {"backbone": "vgg16"}, "infection.ct_slice.backbone"),
        ("ct_slice", {"threshold": 1.5}, "infection.ct_slice.threshold"),
        ("ct_slice", {"sets": ["elsewhere"]}, "infection names 'elsewhere'"),
        ("ct_slice", {"pseudo": {"sets": ["phantom"]}}, "infection.ct_slice.pseudo.sets needs infection.ct_slice.sets"),
        ("ct_slice", {"pseudo": {"chunk": 0}}, "infection.ct_slice.pseudo.chunk"),
        ("ct_slice", {"pseudo": {"final": "both"}}, "infection.ct_slice.pseudo.final"),
        ("ct_volume", {"slices": {"sets": ["phantom"]}}, "slices.sets and slices.pseudo.sets are for pictures"),
        ("ct_volume", {"slices": {"kinds": True}}, "slices.kinds is for pictures"),
        ("ct_volume", {"window": [150, -1350]}, "the first must be below the second"),
        ("ct_volume", {"window": [150, 150]}, "the first must be below the second"),
        ("ct_volume", {"patch": [32, 96, 100]}, "each side must be a multiple of 8, and 16 or more"),
        ("ct_volume", {"patch": [8, 96, 96]}, "each side must be a multiple of 8, and 16 or more"),
        ("ct_volume", {"spacing_mm": [3, 0, 1.5]}, "each must be above 0"),
        ("ct_volume", {"kinds": True}, "infection.ct_volume"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(phantom: dict, modality: str, settings: dict, says: str) -> None:
    values = copy.deepcopy(phantom)
    values.setdefault("infection", {})[modality] = settings
    with pytest.raises(ConfigError) as caught:
        parse(values)
    message = str(caught.value)
    assert says in message
    assert f"infection.{modality}" in message or "names 'elsewhere'" in message
    assert "\n" not in message


def test_settings_that_can_be_are_taken(phantom: dict) -> None:
    values = copy.deepcopy(phantom)
    slices = {"sets": ["phantom"], "size": 96, "kinds": True, "scales": [1.0], "clip_value": None}
    volumes = {"sets": ["phantom"], "network": "unet3d", "patch": [16, 32, 40], "spacing_mm": None}
    values["infection"] = {"ct_slice": {**slices, "pseudo": {"sets": ["phantom"]}}, "ct_volume": volumes}
    taken = parse(values).infection
    assert taken.ct_slice.pseudo.sets == ["phantom"]
    assert taken.ct_volume.patch == (16, 32, 40)
