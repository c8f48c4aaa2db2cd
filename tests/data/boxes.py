"""Bounds of a box (B, D, 2), as a raw chunk holds them, and the same as a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mask_of(bounds: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, 1, X, Y[, Z]) bool, True in the box."""
    mask = torch.zeros(len(bounds), 1, *shape, dtype=torch.bool)
    for one, box in zip(mask, bounds, strict=True):
        one[(0, *(slice(int(first), int(last) + 1) for first, last in box))] = True
    return mask


def bounds_of(mask: Tensor) -> Tensor:
    """The smallest box that holds what is True in a mask (B, 1, X, Y[, Z])."""
    found = [one[0].nonzero() for one in mask]
    return torch.stack([torch.stack((voxels.amin(0), voxels.amax(0)), dim=-1) for voxels in found])
