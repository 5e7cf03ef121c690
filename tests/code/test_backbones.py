import re
import urllib.error
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from chestflow.errors import ConfigError, TrainingError
from chestflow.nn.backbones import CHANNELS, MIN_SIDE, PYRAMID_CHANNELS, QUARTER, Backbone, load_weights
from chestflow.nn.input import IMAGENET_MEAN, IMAGENET_STD

SMALL = "squeezenet1_1"
CACHED = {"resnet18": "resnet18-f37072fd.pth", "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth"}


def stand_in(name, seed=7):
    """Random tensors in the place of pretrained weights: the layout is torchvision's, the numbers mean nothing."""
    torch.manual_seed(seed)
    return get_model(name, weights=None).state_dict()


@pytest.mark.parametrize("name", CHANNELS)
def test_maps_at_224_pixels(name):
    with torch.device("meta"):
        maps = Backbone(name).pyramid(torch.empty(1, 3, 224, 224))
    last = {SMALL: 13, "inception_v3": 5}.get(name, 7)
    assert maps[-1].shape == (1, CHANNELS[name], last, last)
    sides = [m.shape[-1] for m in maps]
    assert sides == sorted(set(sides), reverse=True)


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_resolution_is_there_from_the_smallest_side_on(name, channels):
    with torch.device("meta"):
        backbone = Backbone(name, channels).eval()
        for side in (MIN_SIDE[name], 96, 224):
            maps = backbone.pyramid(torch.empty(1, channels, side, side))
            assert tuple(m.shape[1] for m in maps) == PYRAMID_CHANNELS[name]
            assert all(fine.shape[-1] > coarse.shape[-1] for fine, coarse in pairwise(maps))
    assert 0.22 < maps[QUARTER[name]].shape[-1] / 224 < 0.26
    with torch.device("meta"), pytest.raises(ValueError, match=f"at least {MIN_SIDE[name]} pixels"):
        backbone(torch.empty(1, channels, 224, MIN_SIDE[name] - 1))


def test_inception_at_its_own_size():
    with torch.device("meta"):
        maps = Backbone("inception_v3").pyramid(torch.empty(1, 3, 299, 299))
    assert [tuple(m.shape[1:]) for m in maps] == [
        *((64, 147, 147), (192, 71, 71), (288, 35, 35), (768, 17, 17), (2048, 8, 8)),
    ]


def test_vgg16_ends_before_and_after_its_last_pooling():
    backbone = Backbone("vgg16").eval()
    with torch.no_grad():
        *_, conv5, last = backbone.pyramid(torch.rand(1, 3, 64, 64))
    assert (conv5.shape[-1], last.shape[-1]) == (4, 2)
    assert torch.equal(torch.nn.functional.max_pool2d(conv5, 2), last)


def test_resnet50_maps_are_its_stages():
    with torch.device("meta"):
        maps = Backbone("resnet50").pyramid(torch.empty(1, 3, 224, 224))
    assert [tuple(m.shape[1:]) for m in maps] == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "densenet121", "inception_v3", "efficientnet_b0"])
def test_last_map_is_torchvisions(name):
    backbone = Backbone(name).eval()
    options = {"aux_logits": False, "init_weights": False} if name == "inception_v3" else {}
    reference = get_model(name, weights=None, **options)
    reference.load_state_dict({**reference.state_dict(), **backbone.trunk.state_dict()})
    x = torch.rand(1, 3, MIN_SIDE[name], MIN_SIDE[name])
    with torch.no_grad():
        f = backbone(x)
        logits = reference.eval()(x)
        if name in ("resnet18", "inception_v3"):
            own = reference.fc(f.mean((2, 3)))
        elif name in ("densenet121", "efficientnet_b0"):
            own = reference.classifier(f.mean((2, 3)))
        else:
            own = reference.classifier(f).flatten(1)
    torch.testing.assert_close(own, logits, atol=1e-5, rtol=1e-4)
    assert f.min() >= (-0.28 if name == "efficientnet_b0" else 0)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "densenet121", "inception_v3"])
@pytest.mark.parametrize("channels", [1, 3])
def test_smallest_images_pass(name, channels):
    backbone = Backbone(name, channels).eval()
    with torch.no_grad():
        found = backbone(torch.rand(1, channels, MIN_SIDE[name], MIN_SIDE[name]))
    assert found.shape[1] == CHANNELS[name]
    assert torch.isfinite(found).all()


def test_state_dict_file_is_loaded_and_its_head_ignored(tmp_path):
    state = stand_in(SMALL)
    torch.save(state, tmp_path / "stand_in.pth")
    save_file(state, tmp_path / "stand_in.safetensors")
    for file in ("stand_in.pth", "stand_in.safetensors"):
        backbone = Backbone(SMALL)
        head = load_weights(backbone, str(tmp_path / file))
        assert set(head) == {"classifier.1.weight", "classifier.1.bias"}
        for key, value in backbone.trunk.state_dict().items():
            assert torch.equal(value, state[key])


@pytest.mark.parametrize("name", CHANNELS)
def test_every_network_takes_torchvisions_file(name, tmp_path, monkeypatch):
    """Zeros in torchvision's layout, the auxiliary head included: what is loaded must be there and fit."""
    with torch.device("meta"):
        options = {"init_weights": False} if name == "inception_v3" else {}
        layout = get_model(name, weights=None, **options).state_dict()
        backbone = Backbone(name, 1)
    monkeypatch.setattr("chestflow.nn.backbones._imagenet", lambda _: {k: v.to("meta") for k, v in layout.items()})
    head = load_weights(backbone, "imagenet")
    assert any(key.startswith(("fc.", "classifier.")) for key in head)
    assert len(head) + len(backbone.trunk.state_dict()) == len(layout)


def test_chexnets_form_is_read(tmp_path):
    """Under ``state_dict``, with DataParallel's prefix, the old layer names, and without counts of batches."""
    state = stand_in("densenet121")
    old = {}
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            renamed = re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key)
            old[f"module.densenet121.{renamed.replace('classifier.', 'classifier.0.')}"] = value
    torch.save({"epoch": 4, "state_dict": old}, tmp_path / "chexnet.pth")
    backbone = Backbone("densenet121", 1)
    head = load_weights(backbone, str(tmp_path / "chexnet.pth"))
    assert set(head) == {"classifier.0.weight", "classifier.0.bias"}
    key = "features.denseblock2.denselayer3.conv1.weight"
    assert torch.equal(backbone.trunk.state_dict()[key], state[key])
    torch.testing.assert_close(
        backbone.trunk.features.conv0.weight, state["features.conv0.weight"].sum(1, keepdim=True)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_inceptions_weights_see_what_torchvision_shows_them(tmp_path, channels):
    """torchvision's own network scales its input to [-1, 1]; ours gets it standardised and answers the same."""
    torch.manual_seed(3)
    reference = get_model("inception_v3", weights=None, init_weights=False, transform_input=True).eval()
    torch.nn.init.normal_(reference.Conv2d_1a_3x3.bn.running_mean)
    torch.save(reference.state_dict(), tmp_path / "stand_in.pth")
    backbone = Backbone("inception_v3", channels).eval()
    load_weights(backbone, str(tmp_path / "stand_in.pth"))
    grey = torch.rand(1, 1, 75, 75)
    standardised = grey.expand(-1, 3, -1, -1)  # what the backbone gets: the same value in every channel
    seen = []
    reference.Conv2d_1a_3x3.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        reference(standardised)
        own = backbone.trunk.Conv2d_1a_3x3(grey if channels == 1 else standardised)
    torch.testing.assert_close(own, seen[0], atol=1e-5, rtol=1e-4)
    scaled = reference._transform_input(standardised)
    values = standardised * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    torch.testing.assert_close(scaled, 2 * values - 1)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vgg16", "efficientnet_b0"])
def test_one_channel_answers_as_the_repeated_grey_value(tmp_path, name):
    torch.save(stand_in(name), tmp_path / "stand_in.pth")
    three, one = Backbone(name, 3).eval(), Backbone(name, 1).eval()
    for backbone in (three, one):
        load_weights(backbone, str(tmp_path / "stand_in.pth"))
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(one(grey), three(grey.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)


def test_imagenet_takes_torchvisions_own_way(tmp_path, monkeypatch):
    """A stand-in lies where torch caches its downloads: everything but the download itself is the real route."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    state = stand_in("resnet18")
    torch.save(state, tmp_path / "checkpoints" / CACHED["resnet18"])
    backbone = Backbone("resnet18")
    load_weights(backbone, "imagenet")
    assert torch.equal(backbone.trunk.conv1.weight, state["conv1.weight"])
    assert torch.equal(backbone.trunk.layer4[1].bn2.running_var, state["layer4.1.bn2.running_var"])


def test_imagenet_without_a_network(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    with pytest.raises(TrainingError, match=r"cannot be downloaded.*put https://.*or to null"):
        load_weights(Backbone(SMALL), "imagenet")


def test_imagenet_with_a_damaged_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / CACHED[SMALL]).write_bytes(b"half a download")
    with pytest.raises(TrainingError, match="damaged: delete the file"):
        load_weights(Backbone(SMALL), "imagenet")


def test_damaged_missing_and_foreign_files(tmp_path):
    whole = tmp_path / "whole.pth"
    torch.save(stand_in(SMALL), whole)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:1000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 40)
    torch.save([1, 2], tmp_path / "list.pth")
    cases = {"cut.pth": "cannot be read", "cut.safetensors": "cannot be read", "none.pth": "do not exist"}
    for file, message in {**cases, "list.pth": "no state dict"}.items():
        with pytest.raises(TrainingError, match=message):
            load_weights(Backbone(SMALL), str(tmp_path / file))
    before = Backbone("resnet18")
    kept = {k: v.clone() for k, v in before.trunk.state_dict().items()}
    with pytest.raises(TrainingError, match="do not fit resnet18"):
        load_weights(before, str(whole))
    assert all(torch.equal(v, kept[k]) for k, v in before.trunk.state_dict().items())


def test_a_file_that_would_run_code_is_not_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"x": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(TrainingError, match="cannot be read"):
        load_weights(Backbone(SMALL), str(tmp_path / "trap.pth"))
    assert not (tmp_path / "sprung").exists()


def test_unknown_backbone_is_named():
    with pytest.raises(ConfigError, match=r"alexnet.*resnet18"):
        Backbone("alexnet")
