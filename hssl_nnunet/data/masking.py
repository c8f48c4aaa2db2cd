"""Random blocks that are hidden from the encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hssl_nnunet.data.device import sent


def block_edges(spacing: Sequence[float], block_voxel: int) -> tuple[int, ...]:
    """Edges of a block in voxels: `block_voxel` along the finest axis, fewer along coarser ones, at least one.

    So a block is as near to a cube in mm as whole voxels allow.
    """
    return tuple(max(1, round(block_voxel * min(spacing) / s)) for s in spacing)


def hidden_blocks(
    size: Sequence[int], spacing: Sequence[float], ratio: float, block_voxel: int
) -> tuple[list[int], int]:
    """Blocks that tile an image along each axis, and how many of them are hidden: at least one is shown.

    Args:
        size: voxels of the spatial axes.
        spacing: mm per voxel of the same axes.
        ratio: share of blocks to hide, in [0, 1].
        block_voxel: edge of a block along the finest axis, in voxels.
    """
    grid = [math.ceil(n / edge) for n, edge in zip(size, block_edges(spacing, block_voxel), strict=True)]
    blocks = math.prod(grid)
    return grid, min(round(ratio * blocks), blocks - 1)


def block_mask(
    shape: Sequence[int],
    spacing: Sequence[float],
    ratio: float,
    block_voxel: int,
    generator: torch.Generator,
    device: torch.device | str,
) -> Tensor:
    """Hide random blocks of each image, after He et al. 2022, Masked Autoencoders, https://arxiv.org/abs/2111.06377.

    The image is tiled with blocks from its first voxel on; those at its far end may be cut. Of n blocks exactly
    round(ratio * n) are hidden, drawn uniformly for each image, but at least one is shown: an image of a single block
    is shown whole.

    Args:
        shape: (B, 1, X, Y[, Z]).
        spacing: mm per voxel of the spatial axes.
        ratio: share of blocks to hide, in [0, 1].
        block_voxel: edge of a block along the finest axis, in voxels.
        generator: on the CPU, so that every device draws the same mask.
        device: where the mask is returned.

    Returns:
        (B, 1, X, Y[, Z]) bool, True = hidden.
    """
    batch, _, *size = shape
    edges = block_edges(spacing, block_voxel)
    grid, hidden = hidden_blocks(size, spacing, ratio, block_voxel)
    order = torch.rand(batch, math.prod(grid), generator=generator).argsort(dim=1)
    mask = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :hidden], True)
    mask = sent(mask.view(batch, 1, *grid), device)
    for axis, (edge, n) in enumerate(zip(edges, size, strict=True), start=2):
        mask = mask.repeat_interleave(edge, dim=axis).narrow(axis, 0, n)
    return mask
