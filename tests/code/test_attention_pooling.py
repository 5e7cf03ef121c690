"""Attention pooling against its definition, and what must hold of it."""

import pytest
import torch

from chestflow.nn.attention_pooling import AttentionPooling, attention_features, signed_root


def tensors(channels=5, maps=3, side=4, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, channels, side, side, generator=generator)
    return features, torch.rand(batch, maps, side, side, generator=generator)


def test_equals_a_loop_over_maps_and_channels():
    features, maps = tensors()
    for pool in ("avg", "max"):
        found = attention_features(features, maps, pool)
        for b in range(2):
            for j in range(3):
                for c in range(5):
                    product = maps[b, j] * features[b, c]
                    expected = product.sum() / 16 if pool == "avg" else product.max()
                    torch.testing.assert_close(found[b, j, c], expected)


def test_the_papers_vector_has_65536_values_and_unit_norm():
    features, maps = tensors(2048, 32, 7)
    vector = AttentionPooling()(features.relu(), maps)
    assert vector.shape == (2, 65_536)
    torch.testing.assert_close(vector.norm(dim=1), torch.ones(2))


def test_the_vector_is_attention_major():
    features, maps = tensors()
    vector = AttentionPooling()(features, maps)
    matrix = signed_root(attention_features(features, maps))
    torch.testing.assert_close(vector.view(2, 3, 5), matrix / matrix.flatten(1).norm(dim=1)[:, None, None])


def test_permuting_the_maps_permutes_blocks():
    features, maps = tensors()
    order = [2, 0, 1]
    permuted = AttentionPooling()(features, maps[:, order])
    torch.testing.assert_close(permuted.view(2, 3, 5), AttentionPooling()(features, maps).view(2, 3, 5)[:, order])


def test_constant_maps_give_multiples_of_the_average():
    features, _ = tensors()
    levels = torch.tensor([0.0, 0.5, 3.0])
    found = attention_features(features, levels[None, :, None, None].expand(2, 3, 4, 4))
    torch.testing.assert_close(found, levels[None, :, None] * features.mean((2, 3))[:, None])


def test_linear_in_the_features_before_the_root():
    (first, maps), (second, _) = tensors(seed=1), tensors(seed=2)
    together = attention_features(2 * first - 3 * second, maps)
    torch.testing.assert_close(together, 2 * attention_features(first, maps) - 3 * attention_features(second, maps))
    bent = signed_root(attention_features(2 * first, maps))
    assert not torch.allclose(bent, 2 * signed_root(attention_features(first, maps)))


def test_root_is_odd_and_its_gradient_is_bounded():
    x = torch.tensor([-4.0, -1e-12, 0.0, 1e-12, 4.0], requires_grad=True)
    root = signed_root(x)
    torch.testing.assert_close(root, torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 2.0]), atol=1e-6, rtol=1e-6)
    root.sum().backward()
    assert x.grad.abs().max() <= 500.1
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("zero", ["features", "maps"])
def test_nothing_to_see_is_a_zero_vector_with_finite_gradients(zero):
    features, maps = tensors()
    (features if zero == "features" else maps).zero_()
    features.requires_grad_()
    maps.requires_grad_()
    vector = AttentionPooling()(features, maps)
    assert not vector.any()
    vector.sum().backward()
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(maps.grad).all()


def test_computed_in_float32_under_mixed_precision():
    features, maps = tensors(64, 8, 7)
    plain = AttentionPooling()(features.bfloat16().float(), maps.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = AttentionPooling()(features.bfloat16(), maps.bfloat16())
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)


@pytest.mark.parametrize("options", [{"pool": "sum"}, {"eps": 0.0}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="pool is"):
        AttentionPooling(**options)
