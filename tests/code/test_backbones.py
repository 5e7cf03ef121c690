import urllib.error

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from chestflow.errors import ConfigError, TrainingError
from chestflow.nn.backbones import CHANNELS, Backbone, load_weights

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
    last = 13 if name == SMALL else 7
    assert maps[-1].shape == (1, CHANNELS[name], last, last)
    sides = [m.shape[-1] for m in maps]
    assert sides == sorted(set(sides), reverse=True)


def test_resnet50_maps_are_its_stages():
    with torch.device("meta"):
        maps = Backbone("resnet50").pyramid(torch.empty(1, 3, 224, 224))
    assert [tuple(m.shape[1:]) for m in maps] == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "densenet121"])
def test_last_map_is_torchvisions(name):
    backbone = Backbone(name).eval()
    reference = get_model(name, weights=None)
    reference.load_state_dict({**reference.state_dict(), **backbone.trunk.state_dict()})
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        f = backbone(x)
        logits = reference.eval()(x)
        if name == "resnet18":
            own = reference.fc(f.mean((2, 3)))
        elif name == "densenet121":
            own = reference.classifier(f.mean((2, 3)))
        else:
            own = reference.classifier(f).flatten(1)
    torch.testing.assert_close(own, logits, atol=1e-5, rtol=1e-4)
    assert f.min() >= 0


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "densenet121"])
@pytest.mark.parametrize("channels", [1, 3])
def test_smallest_images_pass(name, channels):
    backbone = Backbone(name, channels).eval()
    assert backbone(torch.rand(1, channels, 64, 64)).shape[1] == CHANNELS[name]


def test_state_dict_file_is_loaded_and_its_head_ignored(tmp_path):
    state = stand_in(SMALL)
    torch.save(state, tmp_path / "stand_in.pth")
    save_file(state, tmp_path / "stand_in.safetensors")
    for file in ("stand_in.pth", "stand_in.safetensors"):
        backbone = Backbone(SMALL)
        load_weights(backbone, str(tmp_path / file))
        for key, value in backbone.trunk.state_dict().items():
            assert torch.equal(value, state[key])


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
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
