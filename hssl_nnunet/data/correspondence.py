"""Points of an image that both of its views show."""

from __future__ import annotations

import torch
from torch import Tensor

from hssl_nnunet.data.device import sent
from hssl_nnunet.data.views import Views
from hssl_nnunet.losses.voxel import Points

DRAWN_PER_POINT = 8  # views share an eighth of a crop's volume at the least overlap of half its edge


def corresponding_points(views: Views, count: int, generator: torch.Generator) -> Points:
    """Draw points of view 0 that lie in view 1 too, inside the image in both, hidden or not.

    A point is drawn uniformly in view 0 and carried by the views' affine maps into view 1; of more candidates than
    needed the first that both show are taken. Of points in one voxel the first counts: it must not be told from itself.

    Args:
        views: the two views, as `make_views` drew them.
        count: points of each image, K; where the views share too little, the last ones do not count. Eight candidates
            a point suffice at an overlap of half an edge or more; at none about a sixth of a 3D image's points is
            missing, and in a few images of a hundred all.
        generator: on the CPU, so that every device draws the same points.
    """
    size = views.valid.shape[3:]
    half = torch.tensor([n / 2 for n in size])
    first = (2 * torch.rand(len(views.offset), DRAWN_PER_POINT * count, len(size), generator=generator) - 1) * half
    (m0, m1), (t0, t1) = views.matrix.unbind(1), views.offset.unbind(1)
    box = first @ m0.mT + (t0 - t1)[:, None]
    both = torch.stack([first, torch.linalg.solve(m1, box.mT).mT])  # (2, B, candidates, D), from the views' centres
    drawn = (both + half).floor().long()
    voxels = drawn.clamp(torch.tensor(0), torch.tensor(size) - 1)
    voxels, inside = (sent(t, views.valid.device) for t in (voxels, (voxels == drawn).all(-1)))
    shown = (inside & _at(views.valid[:, :, 0], voxels)).all(0)  # (B, candidates)
    chosen = (~shown).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    voxels = voxels.gather(2, chosen[None, :, :, None].expand(2, -1, -1, len(size)))
    same = (voxels[:, :, :, None] == voxels[:, :, None]).all(-1).any(0)  # (B, K, K), in either view
    return Points(voxels, shown.gather(1, chosen) & ~same.tril(-1).any(-1))


def _at(valid: Tensor, voxels: Tensor) -> Tensor:
    """Values of (2, B, X, Y[, Z]) at voxels (2, B, N, D): (2, B, N)."""
    index = torch.zeros_like(voxels[..., 0])
    for axis, n in enumerate(valid.shape[2:]):
        index = index * n + voxels[..., axis]
    return valid.flatten(2).gather(2, index)
