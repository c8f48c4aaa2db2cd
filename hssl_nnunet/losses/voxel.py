"""Contrast between voxels: what one view says of a place is to be found among what the other says of many places."""

from __future__ import annotations

from collections.abc import Sequence
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
    """What the network says of the places of one chunk.

    Attributes:
        z: (2, B, K, P) l2-normalised embeddings.
        kept: (B, K) bool, places that count.
    """

    z: Tensor
    kept: Tensor


def voxel_contrast(chunks: Sequence[VoxelEmbeddings], tau: float) -> Tensor:
    """A place in one view finds itself among the places of the same image in the other view; mean of both directions.

    `mean_i -log( exp(z_i.z'_i / tau) / sum_k exp(z_i.z'_k / tau) )`, z and z' of the two views, k over its places.

    Source: Pinheiro et al. 2020, Unsupervised Learning of Dense Visual Representations (VADeR),
    https://arxiv.org/abs/2011.05499: contrast of pixels that two views share, on a decoder's features. Here negatives
    are of the same image alone: other domains, and mostly other images, can be told apart by intensities.

    Args:
        chunks: one or more chunks.
        tau: temperature, > 0.

    Returns:
        Scalar >= 0, at least float32: mean over the images; its mean over processes is the value over all images.
        Images without a place are left out; 0, with a graph, when there is no other.
    """
    errors = torch.cat([_error_of_images(c, tau) for c in chunks])
    return mean_over_images(errors, torch.cat([c.kept.any(1) for c in chunks]))


def _error_of_images(chunk: VoxelEmbeddings, tau: float) -> Tensor:
    first, second = chunk.z.to(torch.promote_types(chunk.z.dtype, torch.float32))
    with torch.autocast(first.device.type, enabled=False):  # exp(1 / tau) magnifies the error of bfloat16
        similarity = first @ second.mT / tau  # (B, K, K)
    least = torch.finfo(similarity.dtype).min
    missing = similarity.masked_fill(~(chunk.kept[:, :, None] & chunk.kept[:, None, :]), least)
    positive = similarity.diagonal(dim1=1, dim2=2)
    errors: Tensor = (missing.logsumexp(2) + missing.logsumexp(1)) / 2 - positive
    return errors.masked_fill(~chunk.kept, 0).sum(1) / chunk.kept.sum(1).clamp(min=1)
