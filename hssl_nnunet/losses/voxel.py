"""Contrast between voxels: what one view says of a place is to be found among what the other says of many places."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hssl_nnunet.losses.gather import mean_over_images


@dataclass(frozen=True, slots=True)
class Points:
    """K places of each image, in both views.

    Attributes:
        voxels: (2, B, K, D) int64, the voxel of each view that shows the place; any voxel where it does not count.
        kept: (B, K) bool, False = no place that both views show; it counts for nothing.
    """

    voxels: Tensor
    kept: Tensor

    def images(self) -> list[Points]:
        """The places of each image by themselves."""
        parts = torch.split(self.voxels, 1, dim=1), torch.split(self.kept, 1)
        return [Points(*image) for image in zip(*parts, strict=True)]


@dataclass(frozen=True, slots=True)
class VoxelEmbeddings:
    """What the network says of K places of each of N images.

    Attributes:
        z: (2, N, K, P) l2-normalised embeddings.
        kept: (N, K) bool, places that count.
    """

    z: Tensor
    kept: Tensor


def voxel_contrast(voxels: VoxelEmbeddings, tau: float) -> Tensor:
    """A place in one view finds itself among the places of the same image in the other view; mean of both directions.

    `mean_i -log( exp(z_i.z'_i / tau) / sum_k exp(z_i.z'_k / tau) )`, z and z' of the two views, k over its places.

    Source: Pinheiro et al. 2020, Unsupervised Learning of Dense Visual Representations (VADeR),
    https://arxiv.org/abs/2011.05499: contrast of pixels that two views share, on a decoder's features. Here negatives
    are of the same image alone: other domains, and mostly other images, can be told apart by intensities.

    Args:
        voxels: places of this process' images.
        tau: temperature, > 0.

    Returns:
        Scalar >= 0, at least float32: mean over the images; its mean over processes is the value over all images.
        Images of fewer than two places, where nothing is to be told apart, are left out; 0, with a graph, when there is
        no other.
    """
    kept = voxels.kept & (voxels.kept.sum(1, keepdim=True) > 1)
    first, second = voxels.z.to(torch.promote_types(voxels.z.dtype, torch.float32))
    with torch.autocast(first.device.type, enabled=False):  # exp(1 / tau) magnifies the error of bfloat16
        similarity = first @ second.mT / tau  # (N, K, K)
    least = torch.finfo(similarity.dtype).min
    counted = similarity.masked_fill(~(kept[:, :, None] & kept[:, None, :]), least)
    positive = similarity.diagonal(dim1=1, dim2=2)
    errors = (counted.logsumexp(2) + counted.logsumexp(1)) / 2 - positive
    of_images = errors.masked_fill(~kept, 0).sum(1) / kept.sum(1).clamp(min=1)
    return mean_over_images(of_images, kept.any(1))
