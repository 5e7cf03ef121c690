import math

import pytest
import torch

from chestflow.nn.resnet3d import BasicBlock3d, ResNet3d, ZeroPadShortcut


def tiny(**options):
    torch.manual_seed(0)
    return ResNet3d(10, 4, **options)


def maps(network, shape):
    """Shapes after the stem, the max pool and each stage, without computing anything."""
    shapes = []
    for module in (network.conv1, network.maxpool, *(stage[-1] for stage in network.stages())):
        module.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    network(torch.empty(1, 1, *shape, device="meta"))
    return shapes


def test_shapes_of_the_paper():
    with torch.device("meta"):
        network = ResNet3d()
    assert maps(network, (138, 256, 256)) == [
        (64, 69, 128, 128),
        (64, 35, 64, 64),
        (64, 35, 64, 64),
        (128, 18, 32, 32),
        (256, 9, 16, 16),
        (512, 9, 16, 16),
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"last_stride": 2}, (512, 5, 8, 8)),
        ({"stem_stride_z": 1}, (512, 18, 16, 16)),
        ({"shortcut": "A"}, (512, 9, 16, 16)),
    ],
)
def test_shapes_of_the_options(options, expected):
    with torch.device("meta"):
        network = ResNet3d(**options)
    assert maps(network, (138, 256, 256))[-1] == expected


@pytest.mark.parametrize("shape", [(16, 17, 31), (32, 33, 48), (49, 64, 65), (138, 70, 96)])
def test_total_stride_is_16_rounded_up(shape):
    with torch.device("meta"):
        network = ResNet3d(10, 4)
    assert maps(network, shape)[-1][1:] == tuple(math.ceil(n / 16) for n in shape)


@pytest.mark.parametrize("depth", [10, 18, 34])
def test_depth_counts_the_layers_with_weights(depth):
    with torch.device("meta"):
        network = ResNet3d(depth)
    convolutions = [n for n, m in network.named_modules() if isinstance(m, torch.nn.Conv3d) and "shortcut" not in n]
    assert len(convolutions) + 1 == depth  # the classifier is the last layer


def test_last_stride_has_no_parameters_of_its_own():
    counts = {s: sum(p.numel() for p in tiny(last_stride=s).parameters()) for s in (1, 2)}
    assert counts[1] == counts[2]


def test_shortcut_a_subsamples_and_pads():
    x = torch.rand(1, 2, 5, 4, 4)
    out = ZeroPadShortcut(2, 6, 2)(x)
    assert torch.equal(out[:, :2], torch.nn.functional.avg_pool3d(x, 1, 2))
    assert (out[:, 2:] == 0).all()
    assert out.shape == (1, 6, 3, 2, 2)


def test_shortcut_a_has_fewer_parameters_and_b_projects_once_a_stage():
    a, b = ({n for n, _ in tiny(shortcut=s).named_parameters() if "shortcut" in n} for s in "AB")
    assert not a
    assert {n.split(".shortcut")[0] for n in b} == {"layer2.0", "layer3.0", "layer4.0"}


def test_block_matches_its_formula():
    torch.manual_seed(0)
    block, x = BasicBlock3d(3, 3).eval(), torch.randn(1, 3, 4, 4, 4)
    f = torch.nn.functional
    inner = torch.relu(f.conv3d(x, block.conv1.weight, padding=1) / math.sqrt(1 + 1e-5))
    outer = f.conv3d(inner, block.conv2.weight, padding=1) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(block(x), torch.relu(outer + x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_checkpointing_changes_nothing_but_memory(shortcut):
    plain, saving = tiny(shortcut=shortcut), tiny(shortcut=shortcut, checkpointing=True)
    x = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    for network in (plain, saving):
        network.train()(x).square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, p), q in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(p, q), name  # running statistics count each batch once
    assert all(m.track_running_stats for m in saving.modules() if isinstance(m, torch.nn.BatchNorm3d))


class Synchronised(torch.nn.modules.batchnorm._BatchNorm):
    """As synchronised batch norm, which needs GPUs: no kind of BatchNorm3d."""

    def _check_input_dim(self, x):
        pass


def test_checkpointing_counts_once_what_several_gpus_put_in_place_of_batch_norm():
    assert issubclass(torch.nn.SyncBatchNorm, torch.nn.modules.batchnorm._BatchNorm)
    assert not issubclass(torch.nn.SyncBatchNorm, torch.nn.BatchNorm3d)
    plain, saving = tiny(), tiny(checkpointing=True)
    for module in saving.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.BatchNorm3d):
                other = Synchronised(child.num_features)
                other.load_state_dict(child.state_dict())
                setattr(module, name, other)
    assert not any(isinstance(m, torch.nn.BatchNorm3d) for m in saving.modules())
    x = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    for network in (plain, saving):
        network.train()(x).square().sum().backward()
    counted = [b for name, b in saving.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(b) for b in counted} == {1}
    for (name, p), q in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(p, q), name


def test_checkpointing_changes_nothing_in_mixed_precision():
    """48 slices give maps of 24, 12, 6 and 3: never of 2, for which a CPU's bfloat16 gradients are wrong."""
    gradients = []
    for checkpointing in (False, True):
        network = tiny(checkpointing=checkpointing).train()
        x = torch.randn(2, 1, 48, 16, 16, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = network(x)
        out.float().square().sum().backward()
        gradients.append([p.grad for p in network.parameters()] + list(network.buffers()))
    exact = tiny().train()
    exact(torch.randn(2, 1, 48, 16, 16, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    assert not torch.equal(gradients[0][0], exact.conv1.weight.grad)  # it was bfloat16
    for plain, saving in zip(*gradients, strict=True):
        assert torch.equal(plain, saving)


def test_checkpointing_saves_wherever_gradients_are_wanted():
    """Grad-CAM of a network in eval mode too; without gradients nothing is recomputed."""
    x = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    plain, saving = tiny().eval(), tiny(checkpointing=True).eval()
    assert torch.equal(plain(x), saving(x))
    kept = []
    for network in (plain, saving):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            network(x)
        kept.append(sum(sizes))
    assert kept[1] < 0.8 * kept[0]


def test_checkpointing_keeps_less():
    def saved(network):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            network(torch.randn(1, 1, 32, 32, 32))
        return sum(sizes)

    assert saved(tiny(checkpointing=True)) < 0.8 * saved(tiny())


@pytest.mark.parametrize("options", [{"last_stride": 3}, {"shortcut": "C"}, {"stem_stride_z": 4}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="1 or 2"):
        ResNet3d(10, 4, **options)


def test_impossible_depth_is_refused():
    with pytest.raises(ValueError, match="10, 18, 34"):
        ResNet3d(50)
