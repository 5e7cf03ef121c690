import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chestflow.nn.input import IMAGENET_MEAN, IMAGENET_STD, CtInput, CxrInput, standardise


def grey(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 255


def test_imagenet_statistics_of_three_channels():
    image = grey(2, 1, 5, 7)
    out = CxrInput("imagenet", 3)(image)
    for c in range(3):
        torch.testing.assert_close(out[:, c], (image[:, 0] / 255 - IMAGENET_MEAN[c]) / IMAGENET_STD[c])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given_channels", [1, 3])
@pytest.mark.parametrize("normalise", ["imagenet", "unit", "zscore", "zscore_column", "fixed"])
def test_any_channels_in_the_right_channels_out(channels, given_channels, normalise):
    out = CxrInput(normalise, channels)(grey(2, given_channels, 8, 6))
    assert out.shape == (2, channels, 8, 6)
    assert out.dtype == torch.float32


def test_grey_repeated_and_grey_alone_agree():
    image = grey(2, 1, 8, 6)
    for normalise in ("unit", "zscore", "zscore_column"):
        layer = CxrInput(normalise, 3)
        torch.testing.assert_close(layer(image), layer(image.expand(-1, 3, -1, -1)))


def test_zscore_is_per_image_and_columns_per_column():
    out = CxrInput("zscore", 1)(grey(3, 1, 16, 16))
    torch.testing.assert_close(out.mean((1, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((1, 2, 3), correction=0), torch.ones(3))
    columns = CxrInput("zscore_column", 1)(grey(3, 1, 16, 16))
    torch.testing.assert_close(columns.std(2, correction=0), torch.ones(3, 1, 16))
    assert not torch.allclose(out, columns, atol=1e-2)


@pytest.mark.parametrize("normalise", ["zscore", "zscore_column"])
def test_constant_image_becomes_zeros(normalise):
    image = torch.full((1, 1, 8, 8), 77.0, requires_grad=True)
    out = CxrInput(normalise, 1)(image)
    out.sum().backward()
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.isfinite(image.grad).all()


def test_standardise_is_invariant_to_affine_grey_changes():
    image = grey(2, 1, 9, 9)
    torch.testing.assert_close(standardise(3 * image + 40, (1, 2, 3)), standardise(image, (1, 2, 3)), atol=1e-4, rtol=0)


def test_statistics_travel_with_the_weights():
    source, target = CxrInput("fixed", 1, (0.45,), (0.33,)), CxrInput("fixed", 1)
    target.load_state_dict(source.state_dict())
    image = grey(1, 1, 4, 4)
    torch.testing.assert_close(target(image), (image / 255 - 0.45) / 0.33)


@pytest.mark.parametrize(
    ("arguments", "image"),
    [
        (("imagenet", 2), None),
        (("max", 1), None),
        (("fixed", 3, (0.1, 0.2), (1.0,)), None),
        (("unit", 1), (2, 2, 4, 4)),
    ],
)
def test_wrong_arguments_are_named(arguments, image):
    with pytest.raises(ValueError, match=r"channels|normalise|mean and std|expected images"):
        CxrInput(*arguments)(torch.zeros(image or (1, 1, 4, 4)))


def test_window_ends_and_middle():
    out = CtInput()(torch.tensor([-3000.0, -1350.0, -600.0, 150.0, 3000.0]).view(1, 1, 1, 1, 5))
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-32768, 32767), min_size=2, max_size=40))
def test_window_is_monotone_and_clipped(values):
    out = CtInput()(torch.tensor(sorted(values), dtype=torch.float32).view(1, 1, 1, 1, -1)).flatten()
    assert (out.diff() >= 0).all()
    assert out.min() >= 0
    assert out.max() <= 1


def test_lungs_are_cut_out_after_the_window():
    hu = torch.full((1, 1, 2, 2, 2), 100.0)
    lung = torch.zeros_like(hu)
    lung[..., 0] = 1
    assert (CtInput()(hu, lung)[..., 1] == 0).all()
    assert (CtInput()(hu, lung)[..., 0] > 0.9).all()
    assert torch.equal(CtInput()(hu, None), CtInput(mask_lungs=False)(hu, lung))


def test_ct_input_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="does not fit"):
        CtInput()(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 2))
    with pytest.raises(ValueError, match="expected CT"):
        CtInput()(torch.zeros(1, 3, 4, 4, 4))
    with pytest.raises(ValueError, match="width"):
        CtInput(width=0)
