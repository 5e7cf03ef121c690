"""Input layers: from stored grey values or Hounsfield units to what a network sees.

They are the first layer of each network, so that normalisation travels with the weights: whoever holds the weights
file cannot normalise wrongly. Computed in float32 under mixed precision.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Normalise = Literal["imagenet", "unit", "zscore", "zscore_column", "fixed"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def standardise(image: Tensor, dims: tuple[int, ...], eps: float = 1e-3) -> Tensor:
    """Zero mean and unit (population) deviation over ``dims``; what is constant becomes zeros, not NaN.

    ``eps`` is in grey values of [0, 255]: one pixel that differs by 1 in a picture of 224 x 224 deviates by 0.004, and
    rounding in the mean of a constant picture by less than 1e-4.
    """
    centred = image - image.mean(dims, keepdim=True)
    variance = centred.square().mean(dims, keepdim=True)
    flat = variance <= eps**2
    # masked before the root: the root's gradient at 0 is infinite
    return (centred * variance.masked_fill(flat, 1.0).rsqrt()).masked_fill(flat, 0.0)


class CxrInput(nn.Module):
    """Grey or RGB values in [0, 255] to network input.

    Args:
        normalise: ``imagenet`` divides by 255 and standardises by ImageNet's statistics (with one channel: by their
            mean over RGB); ``unit`` divides by 255 (paper 000's code); ``zscore`` standardises each image by its own
            mean and deviation; ``zscore_column`` each image column (paper 001's code does so by accident); ``fixed``
            divides by 255 and standardises by ``mean`` and ``std``.
        channels: 1 or 3 for the backbone; grey is repeated, RGB is averaged.
        mean, std: for ``fixed``, one number per channel or one for all, in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        normalise: Normalise = "imagenet",
        channels: int = 3,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; an X-ray network reads 1 or 3")
        if normalise not in ("imagenet", "unit", "zscore", "zscore_column", "fixed"):
            raise ValueError(f"normalise is {normalise!r}; choose imagenet, unit, zscore, zscore_column or fixed")
        if normalise == "imagenet":
            mean, std = IMAGENET_MEAN, IMAGENET_STD
            if channels == 1:
                mean, std = (sum(mean) / 3,), (sum(std) / 3,)
        if len(mean) not in (1, channels) or len(std) not in (1, channels) or min(std) <= 0:
            raise ValueError(f"mean and std need 1 or {channels} numbers, std above 0; got {mean} and {std}")
        self.normalise, self.channels = normalise, channels
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [0, 255] to (B, channels, H, W) float32.

        Raises:
            ValueError: not four dimensions, or neither 1 nor 3 channels.
        """
        if image.ndim != 4 or image.shape[1] not in (1, 3):
            raise ValueError(f"expected images (B, 1 or 3, H, W), got {tuple(image.shape)}")
        image = image.float()
        if self.normalise == "zscore":
            image = standardise(image, (1, 2, 3))
        elif self.normalise == "zscore_column":
            image = standardise(image, (2,))
        else:
            image = image / 255.0
        if self.channels == 1 and image.shape[1] == 3:
            image = image.mean(1, keepdim=True)
        if self.channels == 3 and image.shape[1] == 1:
            image = image.expand(-1, 3, -1, -1)
        return (image - self.mean) / self.std


class CtInput(nn.Module):
    """Hounsfield units to [0, 1] by a window, zero outside the lungs (paper 004, section II-A).

    The window comes first and the lung mask second, so that what lies outside is 0, as air at the window's lower end.

    Args:
        level: the window's centre in HU.
        width: its full width in HU; 1500 at -600 maps [-1350, 150] to [0, 1].
        mask_lungs: multiply by the lung mask where one is given.
    """

    low: Tensor
    width: Tensor

    def __init__(self, level: float = -600.0, width: float = 1500.0, mask_lungs: bool = True) -> None:
        super().__init__()
        if width <= 0:
            raise ValueError(f"the window's width is {width}; it must be above 0")
        self.mask_lungs = mask_lungs
        self.register_buffer("low", torch.tensor(level - width / 2))
        self.register_buffer("width", torch.tensor(float(width)))

    def forward(self, image: Tensor, lung: Tensor | None = None) -> Tensor:
        """(B, 1, D, H, W) or (B, 1, H, W) in HU and its {0, 1} lung mask to float32 in [0, 1] of the same shape.

        Raises:
            ValueError: more than one channel, or a lung mask of another shape.
        """
        if image.ndim not in (4, 5) or image.shape[1] != 1:
            raise ValueError(f"expected CT (B, 1, D, H, W) or (B, 1, H, W), got {tuple(image.shape)}")
        windowed = ((image.float() - self.low) / self.width).clamp(0.0, 1.0)
        if lung is None or not self.mask_lungs:
            return windowed
        if lung.shape != image.shape:
            raise ValueError(f"lung mask {tuple(lung.shape)} does not fit the image {tuple(image.shape)}")
        return windowed * lung.float()
