"""Intensity transforms of a batch of views, on the device of the batch.

Transforms, order and ranges of parameters are those of nnU-Net's default training (Isensee et al. 2021, nnU-Net,
https://doi.org/10.1038/s41592-020-01008-z, supplement 4; `nnUNetTrainer.get_training_transforms`). Differences:
one probability for all transforms (`ViewPlan.intensity`), and statistics are taken over valid voxels only.

Shapes: image (N, 1, X, Y[, Z]) float32, valid the same, bool; a parameter has one value an image, (N,).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hssl_nnunet.data.device import sent

NOISE_SIGMA = (0.0, 0.1)
BLUR_SIGMA = (0.5, 1.0)  # voxels
BRIGHTNESS = (0.75, 1.25)
CONTRAST = (0.75, 1.25)
LOW_RESOLUTION = (0.5, 1.0)
GAMMA = (0.7, 1.5)
GAMMA_INVERTED = 0.25  # nnU-Net: gamma with probability 0.3, on the inverted image with 0.1
BLUR_RADIUS = 3  # voxels; nnU-Net's kernel at sigma 1
EPS = 1e-7

Transform = Callable[[Tensor, Tensor, tuple[int, ...], torch.Generator], Tensor]


def augment_intensity(
    image: Tensor, valid: Tensor, *, probability: float, fine_axes: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Apply each transform to each image with `probability`, in nnU-Net's order.

    Args:
        image: (N, 1, X, Y[, Z]).
        valid: (N, 1, X, Y[, Z]) bool; an image without any valid voxel counts as valid throughout.
        probability: of each transform, for each image.
        fine_axes: spatial axes along which a low resolution is simulated.
        generator: on the CPU.

    Returns:
        A new tensor; `image` is left as it is.
    """
    image = image.clone()
    valid = valid | ~valid.flatten(1).any(dim=1).view(-1, *[1] * (valid.ndim - 1))
    for transform in TRANSFORMS:
        chosen = torch.nonzero(torch.rand(len(image), generator=generator) < probability)[:, 0]
        if len(chosen):
            rows = sent(chosen, image.device)
            image[rows] = transform(image[rows], valid[rows], fine_axes, generator)
    return image


def _random_noise(image: Tensor, valid: Tensor, fine_axes: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return gaussian_noise(image, _uniform(NOISE_SIGMA, (len(image),), generator), generator)


def _random_blur(image: Tensor, valid: Tensor, fine_axes: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return gaussian_blur(image, _uniform(BLUR_SIGMA, (len(image), image.ndim - 2), generator))


def _random_brightness(image: Tensor, valid: Tensor, fine_axes: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return brightness(image, _around_one(BRIGHTNESS, len(image), generator))


def _random_contrast(image: Tensor, valid: Tensor, fine_axes: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return contrast(image, valid, _around_one(CONTRAST, len(image), generator))


def _random_low_resolution(
    image: Tensor, valid: Tensor, fine_axes: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    return low_resolution(image, _uniform(LOW_RESOLUTION, (len(image),), generator), fine_axes)


def _random_gamma(image: Tensor, valid: Tensor, fine_axes: tuple[int, ...], generator: torch.Generator) -> Tensor:
    exponent = _around_one(GAMMA, len(image), generator)
    return gamma(image, valid, exponent, torch.rand(len(image), generator=generator) < GAMMA_INVERTED)


TRANSFORMS: tuple[Transform, ...] = (
    _random_noise,
    _random_blur,
    _random_brightness,
    _random_contrast,
    _random_low_resolution,
    _random_gamma,
)


def gaussian_noise(image: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """Add gaussian noise of standard deviation `sigma`; its field is drawn on the image's device."""
    seed = int(torch.randint(2**62, (), generator=generator))
    on_device = torch.Generator(image.device).manual_seed(seed)
    noise = torch.empty_like(image).normal_(generator=on_device)
    return image + noise * _as(sigma, image)


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur each axis with a gaussian of `sigma` (N, D) voxels, cut at three voxels; borders are reflected."""
    taps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    weights = torch.softmax(-0.5 * (taps / sigma[..., None]) ** 2, dim=-1)  # (N, D, taps), sums to 1
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        sources = np.pad(np.arange(n), BLUR_RADIUS, mode="reflect")
        index = torch.from_numpy(sources).unfold(0, len(taps), 1).expand(len(image), -1, -1)  # (N, n, taps)
        # one small matrix an axis is several times faster than a convolution with a kernel for each image
        matrix = torch.zeros(len(image), n, n).scatter_add_(2, index, weights[:, None, axis - 2].expand_as(index))
        matrix = sent(matrix.to(image.dtype), image.device)
        blurred = torch.einsum("nc...i,nji->nc...j", image.movedim(axis, -1), matrix)
        image = blurred.movedim(-1, axis)
    return image


def brightness(image: Tensor, factor: Tensor) -> Tensor:
    """Multiply by `factor`."""
    return image * _as(factor, image)


def contrast(image: Tensor, valid: Tensor, factor: Tensor) -> Tensor:
    """Stretch about the mean by `factor`, cut to the range that the image had."""
    mean, _, low, high = _statistics(image, valid)
    return ((image - mean) * _as(factor, image) + mean).clamp(low, high)


def low_resolution(image: Tensor, factor: Tensor, fine_axes: tuple[int, ...]) -> Tensor:
    """Sample `factor` times as many voxels along the fine axes (nearest), and interpolate back (linear)."""
    size = image.shape[2:]
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    results = []
    for one, f in zip(image, factor.tolist(), strict=True):  # sizes differ from image to image
        small = [max(1, round(n * f)) if axis in fine_axes else n for axis, n in enumerate(size)]
        results.append(F.interpolate(F.interpolate(one[None], small, mode="nearest-exact"), size, mode=mode))
    return torch.cat(results)


def gamma(image: Tensor, valid: Tensor, exponent: Tensor, invert: Tensor) -> Tensor:
    """Raise the intensities, scaled to [0, 1], to a power, then restore mean and standard deviation.

    Args:
        image: (N, 1, X, Y[, Z]).
        valid: same shape, bool.
        exponent: (N,).
        invert: (N,) bool; True transforms the negative of the image.
    """
    sign = _as(1.0 - 2.0 * invert, image)
    image = image * sign
    mean, std, low, high = _statistics(image, valid)
    extent = high - low
    image = ((image - low) / extent.clamp(min=EPS)).clamp(0, 1) ** _as(exponent, image) * extent
    new_mean, new_std, _, _ = _statistics(image, valid)
    return ((image - new_mean) * (std / new_std.clamp(min=EPS)) + mean) * sign


def _statistics(image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, standard deviation, least and largest of each image's valid voxels, each (N, 1, 1, 1[, 1])."""
    axes = tuple(range(1, image.ndim))
    count = valid.sum(axes, keepdim=True)
    mean = (image * valid).sum(axes, keepdim=True) / count
    image = torch.where(valid, image, mean)  # the mean adds nothing to what follows
    std = torch.linalg.vector_norm(image - mean, dim=axes, keepdim=True) / count.sqrt()
    return mean, std, image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)


def _as(values: Tensor, image: Tensor) -> Tensor:
    """One value an image, (N,), in the shape that broadcasts over `image`, on its device."""
    return sent(values.to(image.dtype), image.device).view(-1, *[1] * (image.ndim - 1))


def _uniform(bounds: tuple[float, float], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator)


def _around_one(bounds: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    """Below and above 1 equally often, uniform on either side (nnU-Net's `BGContrast`)."""
    below = torch.rand(count, generator=generator) < 0.5
    uniform = torch.rand(count, generator=generator)
    return torch.where(below, bounds[0] + (1 - bounds[0]) * uniform, 1 + (bounds[1] - 1) * uniform)
