from __future__ import annotations

import dataclasses

import pytest
import torch
from boxes import bounds_of

from hssl_nnunet.data.correspondence import corresponding_points
from hssl_nnunet.data.crops import DomainGeometry, RawChunk
from hssl_nnunet.data.views import Views, make_views

GEOMETRIES = [
    DomainGeometry((20, 28, 20), (1.0, 1.0, 1.0)),
    DomainGeometry((6, 40, 40), (8.0, 1.25, 1.25)),
    DomainGeometry((24, 32), (1.0, 1.5)),
]


def position_views(geometry: DomainGeometry, plan, axis: int, known: torch.Tensor | None = None) -> Views:
    """Views of an image whose intensity is its own coordinate along an axis."""
    box = [n + 2 * m for n, m in zip(geometry.crop_size, geometry.margin(plan), strict=True)]
    ramp = torch.arange(box[axis]).float().view([-1 if a == axis else 1 for a in range(len(box))]).expand(*box)
    source = ramp.expand(3, 1, *box).contiguous()
    bounds = bounds_of(torch.ones_like(source) if known is None else known.expand_as(source))
    return make_views(RawChunk(0, (0, 1, 2), 5, source, bounds), geometry, dataclasses.replace(plan, intensity=0))


def draw(views: Views, count: int = 40, seed: int = 0):
    return corresponding_points(views, count, torch.Generator().manual_seed(seed))


def at(image: torch.Tensor, voxels: torch.Tensor) -> torch.Tensor:
    place = (torch.arange(len(image))[:, None], *voxels.unbind(-1))
    return image[:, 0][place]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_both_views_show_the_place(geometry, lively):
    for axis in range(len(geometry.crop_size)):
        views = position_views(geometry, lively, axis)
        points = draw(views)
        assert points.kept.float().mean() > 0.9 and points.voxels.shape == (2, 3, 40, len(geometry.crop_size))
        shown = [at(views.clean[v], points.voxels[v]) for v in range(2)]
        # a voxel is half an edge at most from the point along each axis; scale and rotation stretch that in the box
        assert (shown[0] - shown[1]).abs().max() < 2.5 < shown[0].std() + 2
        assert (shown[0] - shown[1]).mean().abs() < 0.25


def test_places_are_spread_over_all_that_is_shared(still):
    views = position_views(GEOMETRIES[0], still, 0)  # views that change nothing share everything
    points = draw(views, count=2000)
    assert torch.equal(points.voxels[0], points.voxels[1])
    for axis, n in enumerate(GEOMETRIES[0].crop_size):
        assert torch.bincount(points.voxels[0, ..., axis].flatten(), minlength=n).min() > 0.7 * 3 * 2000 / n


def test_padding_holds_no_place(lively):
    geometry = GEOMETRIES[0]
    box = [n + 2 * m for n, m in zip(geometry.crop_size, geometry.margin(lively), strict=True)]
    known = torch.zeros(1, 1, *box, dtype=torch.bool)
    known[:, :, : box[0] // 2] = True
    views = position_views(geometry, lively, 0, known)
    points = draw(views)
    assert points.kept.any() and not views.valid.all()
    for view in range(2):
        assert at(views.valid[view], points.voxels[view])[points.kept].all()


def test_views_that_share_nothing_have_no_place(still):
    views = position_views(GEOMETRIES[0], still, 0)
    apart = views.offset + torch.tensor([[0.0, 0, 0], [100.0, 0, 0]])
    assert not draw(dataclasses.replace(views, offset=apart)).kept.any()


def test_no_voxel_counts_twice(still):
    """A place is never its own negative, in either view; of a small image every voxel still counts once."""
    views = position_views(DomainGeometry((4, 4), (1.0, 1.0)), still, 0)
    points = draw(views, count=200)
    for image in range(3):
        for view in range(2):
            there = points.voxels[view, image][points.kept[image]]
            assert len(there) == len(there.unique(dim=0)) == 16


@pytest.mark.parametrize("factors", [(1.0, 3.0), (3.0, 1.0)])
def test_no_voxel_counts_twice_in_the_view_that_shows_it_smaller(still, factors):
    views = position_views(DomainGeometry((8, 8), (1.0, 1.0)), still, 0)
    factor = torch.tensor(factors).view(1, 2, 1, 1)  # several voxels of one view lie in one of the other
    points = draw(dataclasses.replace(views, matrix=views.matrix * factor), count=200)
    for image in range(3):
        counts = [len(points.voxels[view, image][points.kept[image]].unique(dim=0)) for view in range(2)]
        assert counts == [int(points.kept[image].sum())] * 2 and 0 < counts[1] <= 16  # of 64 voxels


def test_the_seed_decides(lively):
    views = position_views(GEOMETRIES[1], lively, 1)
    assert torch.equal(draw(views).voxels, draw(views).voxels)
    assert not torch.equal(draw(views).voxels, draw(views, seed=1).voxels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_the_same_places(lively):
    views = position_views(GEOMETRIES[0], lively, 0)
    there = draw(dataclasses.replace(views, valid=views.valid.cuda()))
    here = draw(views)
    assert torch.equal(there.voxels.cpu(), here.voxels) and torch.equal(there.kept.cpu(), here.kept)
