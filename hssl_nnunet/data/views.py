"""Random views of an image: rotation and scale in mm, mirroring and shift, then intensity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from hssl_nnunet.data.crops import DomainGeometry, RawChunk
from hssl_nnunet.data.device import sent
from hssl_nnunet.data.intensity import augment_intensity
from hssl_nnunet.plan_values import ViewPlan

SUPPORT_TOLERANCE = 1e-3  # voxels; a sample counts as valid if at most this share of it comes from padding


@dataclass(frozen=True, slots=True)
class Views:
    """V views of B images.

    Attributes:
        clean: (V, B, 1, X, Y[, Z]) float32, spatially transformed only: what a reconstruction aims at.
        augmented: same shape, intensities transformed as well: what the network sees.
        valid: same shape, bool, False where a voxel stems from outside the image, even in part.
        matrix: (B, V, D, D) float32 on the CPU, with `offset` the map of each view as `draw_transforms` has it.
        offset: (B, V, D) float32 on the CPU.
    """

    clean: Tensor
    augmented: Tensor
    valid: Tensor
    matrix: Tensor
    offset: Tensor


def make_views(raw: RawChunk, geometry: DomainGeometry, plan: ViewPlan, num_views: int = 2) -> Views:
    """Draw views of every image of a chunk, on the device of `raw.source`.

    All randomness comes from `raw.seed`. Every parameter is drawn on the CPU, hence alike for all devices; the field
    of the gaussian noise alone is drawn on the device itself.
    """
    generator = torch.Generator().manual_seed(raw.seed)
    count = raw.source.shape[0] * num_views
    matrix, offset = (t.view(-1, num_views, *t.shape[1:]) for t in draw_transforms(geometry, plan, count, generator))
    clean, valid = sample_views(raw.source, raw.bounds, matrix, offset, geometry.crop_size)
    augmented = augment_intensity(
        clean.flatten(0, 1),
        valid.flatten(0, 1),
        probability=plan.intensity,
        fine_axes=geometry.fine_axes,
        generator=generator,
    )
    return Views(clean, augmented.view_as(clean), valid, matrix, offset)


def draw_transforms(
    geometry: DomainGeometry, plan: ViewPlan, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw affine maps from a view's voxels to the box's, both counted from their own centre: p = M q + t.

    M = S^-1 R f S D with the spacing S, the rotation R, the factor of scale f and the mirroring D, so that angles and
    shapes are kept in mm. Along a coarse axis M only mirrors, and t is whole everywhere: slices are never mixed.

    Returns:
        M (count, D, D) and t (count, D), float32, in voxels.
    """
    dim, fine = len(geometry.crop_size), list(geometry.fine_axes)
    spacing = torch.tensor(geometry.spacing)
    matrix = torch.eye(dim).repeat(count, 1, 1)
    for plane in combinations(fine, 2):
        angle = math.radians(plan.rotation_degree) * _symmetric(count, generator)
        matrix = matrix @ plane_rotation(angle, plane, dim)
    matrix[:, fine] *= torch.exp(math.log(1 + plan.scale) * _symmetric(count, generator))[:, None, None]
    matrix = matrix * (spacing[None, :] / spacing[:, None])
    if plan.mirror:
        matrix = matrix * (1 - 2 * torch.randint(2, (count, 1, dim), generator=generator))
    largest = torch.tensor(geometry.largest_offset(plan))
    steps = torch.rand(count, dim, generator=generator) * (2 * largest + 1)
    return matrix, steps.floor().minimum(2.0 * largest) - largest


def plane_rotation(angle: Tensor, plane: tuple[int, int], dim: int) -> Tensor:
    """Rotations of points by `angle` (N,), in radians, from axis `plane[0]` towards `plane[1]`: (N, dim, dim).

    A view that is sampled at the rotated points shows the image turned the other way.
    """
    first, second = plane
    rotation = torch.eye(dim).repeat(len(angle), 1, 1)
    rotation[:, first, first] = rotation[:, second, second] = angle.cos()
    rotation[:, second, first] = angle.sin()
    rotation[:, first, second] = -angle.sin()
    return rotation


def sample_views(
    source: Tensor, bounds: Tensor, matrix: Tensor, offset: Tensor, crop_size: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Sample all views of all images at once, linearly.

    Args:
        source: (B, 1, X', Y'[, Z']).
        bounds: (B, D, 2), first and last voxel of each axis that is no padding; on the CPU.
        matrix: (B, V, D, D), as `draw_transforms`.
        offset: (B, V, D), as `draw_transforms`.
        crop_size: (X, Y[, Z]).

    Returns:
        The views and where they are valid, both (V, B, 1, X, Y[, Z]).
    """
    batch, views, dim = offset.shape
    box, crop = torch.tensor(source.shape[2:]), torch.tensor(crop_size)
    # grid_sample counts -1..1 from border to border of the box, and the last axis first
    linear = matrix * crop / box[:, None]
    theta = torch.cat((linear.flip(-1, -2), (2 * offset / box).flip(-1)[..., None]), dim=-1)
    tolerance = torch.tensor([-SUPPORT_TOLERANCE, SUPPORT_TOLERANCE])
    limits = (2 * (bounds + tolerance) + 1) / box[:, None] - 1
    drawn = sent(torch.cat((theta.flatten(1), limits.flatten(1)), dim=1).to(source.dtype), source.device)
    theta, limits = drawn[:, : -2 * dim].reshape(batch * views, dim, dim + 1), drawn[:, -2 * dim :].view(batch, dim, 2)
    grid = F.affine_grid(theta, [batch * views, 1, *crop_size], align_corners=False)
    # views side by side along the first axis: the box need not be copied for each of them
    grid = grid.view(batch, views * crop_size[0], *grid.shape[2:])
    image = F.grid_sample(source, grid, padding_mode="border", align_corners=False)
    return _views_first(image, views), _views_first(_inside(grid, limits), views)


def _views_first(image: Tensor, views: int) -> Tensor:
    """(B, 1, V * X, ...) -> (V, B, 1, X, ...)."""
    batch, channels, length, *rest = image.shape
    return image.view(batch, channels, views, length // views, *rest).movedim(2, 0).contiguous()


def _inside(grid: Tensor, limits: Tensor) -> Tensor:
    """Which points of a grid (B, X, Y[, Z], D) lie between the limits (B, D, 2): (B, 1, X, Y[, Z]) bool."""
    low, high = limits.view(len(limits), *[1] * (grid.ndim - 2), *limits.shape[1:]).unbind(-1)
    inside = None
    for axis in range(limits.shape[1]):  # axis by axis: a reduction over all three costs a CPU twice as much
        coordinate = grid[..., -1 - axis]
        between = (coordinate >= low[..., axis]) & (coordinate <= high[..., axis])
        inside = between if inside is None else inside.logical_and_(between)
    return inside[:, None]  # type: ignore[index]


def _symmetric(count: int, generator: torch.Generator) -> Tensor:
    """Uniform in [-1, 1)."""
    return 2 * torch.rand(count, generator=generator) - 1
