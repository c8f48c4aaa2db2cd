"""Reconstruction of an image by the decoder, from what the encoder was shown of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hssl_nnunet.losses.gather import mean_over_images

STD_FLOOR = 1e-2
"""Least std by which a target is divided: nnU-Net's images have a std near 1, and an empty crop's noise stays small."""


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """The reconstructions of one chunk, whose images share a shape.

    Attributes:
        prediction: (B, 1, X, Y[, Z]) of the decoder, in units of the standardised target.
        target: (B, 1, X, Y[, Z]) the image before it was masked.
        hidden: (B, 1, X, Y[, Z]) bool, True = hidden from the encoder.
        valid: (B, 1, X, Y[, Z]) bool, False = padding.
    """

    prediction: Tensor
    target: Tensor
    hidden: Tensor
    valid: Tensor


def reconstruction_error(reconstructions: Sequence[Reconstruction], counted: Literal["masked", "full"]) -> Tensor:
    """Mean squared error per image over its counted voxels, then mean over the images, small crops weighing as large.

    Source: He et al. 2022, masked autoencoders, section 3, https://arxiv.org/abs/2111.06377: loss on masked voxels
    only, target normalised. There per patch of 16 x 16 pixels; here per image, so that a domain with a large spread
    of intensities does not own the gradient, while contrast within an image stays part of the task.

    Args:
        reconstructions: one or more chunks.
        counted: `masked` = hidden and valid voxels; `full` = all valid voxels.

    Returns:
        Scalar >= 0, at least float32; its mean over processes is the value over all images. Images without a counted
        voxel are left out; 0, with a graph, when there is no other.
    """
    chunks = [_error_of_images(r, counted) for r in reconstructions]
    return mean_over_images(torch.cat([e for e, _ in chunks]), torch.cat([n > 0 for _, n in chunks]))


def standardised(image: Tensor, valid: Tensor) -> Tensor:
    """Image with mean 0 and std 1 over its valid voxels, 0 in the padding: what the decoder is asked to predict.

    Args:
        image: (B, 1, X, Y[, Z]), any intensities; a std below `STD_FLOOR` counts as `STD_FLOOR`.
        valid: same shape, bool, False = padding.
    """
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    axes = tuple(range(1, image.ndim))
    voxels = valid.sum(axes, keepdim=True).clamp(min=1)
    mean = image.masked_fill(~valid, 0).sum(axes, keepdim=True) / voxels
    centred = (image - mean).masked_fill(~valid, 0)
    std = (centred.square().sum(axes, keepdim=True) / voxels).sqrt()
    return centred / std.clamp(min=STD_FLOOR)


def _error_of_images(r: Reconstruction, counted: Literal["masked", "full"]) -> tuple[Tensor, Tensor]:
    """Mean squared error (B,), and the number of voxels (B,) it is the mean of."""
    mask = r.hidden & r.valid if counted == "masked" else r.valid
    voxels = mask.flatten(1).sum(1)
    # masked before it is squared: nothing outside the mask, not even inf, reaches the gradient
    difference = (r.prediction - standardised(r.target, r.valid)).masked_fill(~mask, 0)
    return difference.square().flatten(1).sum(1) / voxels.clamp(min=1), voxels
