from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from boxes import bounds_of

from hssl_nnunet.data.crops import DomainGeometry, RawChunk
from hssl_nnunet.data.views import draw_transforms, make_views, plane_rotation, sample_views

CUBE = DomainGeometry((8, 8, 8), (1.0, 1.0, 1.0))
SLICES = DomainGeometry((6, 16, 16), (5.0, 1.0, 1.0))
FLAT = DomainGeometry((8, 12), (1.0, 1.5))
GEOMETRIES = [CUBE, SLICES, FLAT, DomainGeometry((8, 8, 8), (2.0, 1.0, 1.5))]


def raw_chunk(geometry: DomainGeometry, plan, batch: int = 2, seed: int = 0, source: torch.Tensor | None = None):
    box = tuple(n + 2 * m for n, m in zip(geometry.crop_size, geometry.margin(plan), strict=True))
    if source is None:
        source = torch.randn(batch, 1, *box, generator=torch.Generator().manual_seed(1))
    return RawChunk(0, tuple(range(batch)), seed, source, bounds_of(torch.ones_like(source)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(source: torch.Tensor, matrix: torch.Tensor, crop: tuple[int, ...], offset: torch.Tensor | None = None):
    """One view of one image, by a matrix in voxels."""
    dim = len(crop)
    offset = torch.zeros(dim) if offset is None else offset
    bounds = bounds_of(torch.ones_like(source)[None, None])
    image, inside = sample_views(source[None, None], bounds, matrix[None, None], offset[None, None], crop)
    return image[0, 0, 0], inside[0, 0, 0]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_view_that_changes_nothing_is_the_central_crop(geometry, still):
    raw = raw_chunk(geometry, still, seed=5)
    views = make_views(raw, geometry, still)
    assert views.clean.shape == views.augmented.shape == views.valid.shape == (2, 2, 1, *geometry.crop_size)
    assert torch.allclose(views.clean, raw.source.expand_as(views.clean), atol=1e-5)
    assert torch.equal(views.augmented, views.clean)
    assert views.valid.all()


def test_a_shifted_view_is_the_shifted_crop(still):
    source = torch.randn(12, 14, 16)
    image, _ = sample(source, torch.eye(3), (8, 8, 8), torch.tensor([2.0, -3.0, 1.0]))
    assert torch.allclose(image, source[4:12, 0:8, 5:13], atol=1e-5)


@pytest.mark.parametrize("plane", [(0, 1), (0, 2), (1, 2)])
def test_a_right_angle_is_rot90(plane):
    source = torch.randn(8, 8, 8)
    image, inside = sample(source, plane_rotation(torch.tensor([math.pi / 2]), plane, 3)[0], (8, 8, 8))
    assert torch.allclose(image, torch.rot90(source, -1, plane), atol=1e-4)
    assert inside.all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirroring_is_flip_and_twice_is_identity(axis):
    source, mirror = torch.randn(6, 8, 10), torch.eye(3)
    mirror[axis, axis] = -1
    once, _ = sample(source, mirror, (6, 8, 10))
    twice, _ = sample(once, mirror, (6, 8, 10))
    assert torch.allclose(once, source.flip(axis), atol=1e-5)
    assert torch.allclose(twice, source, atol=1e-5)


def test_each_axis_is_mirrored_half_of_the_time(still):
    matrix, _ = draw_transforms(SLICES, dataclasses.replace(still, mirror=True), 4000, generator())
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    assert torch.equal(matrix, torch.diag_embed(diagonal)) and set(diagonal.unique().tolist()) == {-1.0, 1.0}
    assert torch.allclose(diagonal.mean(0), torch.zeros(3), atol=0.08)  # five standard errors
    assert torch.allclose(diagonal.T.corrcoef(), torch.eye(3), atol=0.08)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_rotation_and_mirroring_keep_distances_in_mm(geometry, lively):
    matrix, _ = draw_transforms(geometry, dataclasses.replace(lively, scale=0.0), 50, generator())
    spacing = torch.tensor(geometry.spacing)
    in_mm = matrix * spacing[:, None] / spacing[None, :]
    dim = len(spacing)
    assert torch.allclose(in_mm @ in_mm.transpose(1, 2), torch.eye(dim).expand(50, dim, dim), atol=1e-5)
    assert (in_mm.diagonal(dim1=1, dim2=2).abs() < 0.999).any()  # it does rotate


def test_a_ball_in_mm_stays_a_ball(still):
    geometry = DomainGeometry((20, 40, 30), (2.0, 1.0, 1.5))
    plan = dataclasses.replace(still, rotation_degree=90.0)
    mm = torch.meshgrid(
        *((torch.arange(n) - (n - 1) / 2) * s for n, s in zip((20, 40, 30), geometry.spacing, strict=True)),
        indexing="ij",
    )
    ball = torch.exp(-sum(c**2 for c in mm) / (2 * 6.0**2))  # 6 mm wide, far wider than a voxel
    matrix, _ = draw_transforms(geometry, plan, 8, generator())
    for one in matrix:
        image, inside = sample(ball, one, geometry.crop_size)
        assert (image - ball)[inside].abs().max() < 0.03  # a linear interpolation's error
    wrong, inside = sample(ball, plane_rotation(torch.tensor([0.8]), (0, 1), 3)[0], geometry.crop_size)
    assert (wrong - ball)[inside].abs().max() > 0.1  # what a rotation in voxels would do


def test_a_scale_changes_sizes_by_its_factor(still):
    plan = dataclasses.replace(still, scale=0.25)
    matrix, _ = draw_transforms(CUBE, plan, 2000, generator())
    factor = matrix[:, 0, 0]
    assert torch.allclose(matrix, factor[:, None, None] * torch.eye(3))
    assert 1 / 1.25 <= factor.min() < 0.81 and 1.24 < factor.max() <= 1.25
    assert abs(factor.log().mean()) < 0.015  # as often larger as smaller; five standard errors


def test_coarse_slices_are_never_mixed(lively):
    raw = raw_chunk(SLICES, lively)
    levels = torch.arange(raw.source.shape[2]).float() ** 2
    raw = dataclasses.replace(raw, source=levels.view(1, 1, -1, 1, 1).expand_as(raw.source).contiguous())
    for seed in range(10):
        clean = make_views(dataclasses.replace(raw, seed=seed), SLICES, lively).clean
        assert torch.allclose(clean, clean[..., :1, :1].expand_as(clean), atol=1e-2)
        roots = clean[..., 0, 0].sqrt()
        assert torch.allclose(roots, roots.round(), atol=1e-3)  # whole slices
        assert torch.allclose(roots.diff(dim=3).abs(), torch.ones(1), atol=1e-3)  # of unchanged thickness


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7, 1.0])
def test_views_overlap_at_least_as_planned(lively, overlap):
    plan = dataclasses.replace(lively, overlap=overlap)
    _, offset = draw_transforms(DomainGeometry((7, 8, 24), (1.0, 1.0, 1.0)), plan, 4000, generator())
    pairs = offset.view(-1, 2, 3)
    shared = 1 - (pairs[:, 0] - pairs[:, 1]).abs() / torch.tensor([7, 8, 24])
    assert shared.min() >= overlap - 1e-6
    assert shared.min() <= overlap + 2 / 24  # and the freedom is used
    assert torch.equal(offset, offset.round())
    assert (offset.mean(0).abs() < 0.6).all()


def test_padding_is_invalid_and_so_is_what_it_touches(still):
    source, valid = torch.randn(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8, dtype=torch.bool)
    valid[:, :, 2:7, :, 3:] = True
    matrix, offset = torch.eye(3).view(1, 1, 3, 3), torch.zeros(1, 1, 3)
    _, inside = sample_views(source, bounds_of(valid), matrix, offset, (8, 8, 8))
    assert torch.equal(inside[0], valid)
    _, inside = sample_views(source, bounds_of(valid), matrix, offset + 0.5, (8, 8, 8))
    expected = torch.zeros_like(valid)
    expected[:, :, 2:6, :7, 3:7] = True  # both neighbours of a half step must be valid
    assert torch.equal(inside[0], expected)


def test_validity_is_that_of_a_linear_sampling_of_the_mask(lively):
    geometry = DomainGeometry((8, 10, 12), (1.0, 1.0, 1.0))
    raw = raw_chunk(geometry, lively)
    valid = torch.zeros_like(raw.source, dtype=torch.bool)
    valid[0, :, 4:, :12, 3:-3], valid[1, :, :, 6:, 8:16] = True, True
    matrix, offset = (t.view(2, 2, *t.shape[1:]) for t in draw_transforms(geometry, lively, 4, generator(3)))
    _, inside = sample_views(raw.source, bounds_of(valid), matrix, offset, geometry.crop_size)
    ring = torch.nn.functional.pad(valid.float(), [1] * 6)  # outside the box nothing is valid
    everywhere = torch.nn.functional.pad(torch.ones_like(valid), [1] * 6)
    share, _ = sample_views(ring, bounds_of(everywhere), matrix, offset, geometry.crop_size)
    assert 0.2 < inside.float().mean() < 0.9
    assert share[inside].min() > 0.995 and inside[share > 0.9999].all()


def test_beyond_the_box_its_edge_is_repeated_and_invalid():
    source = torch.arange(4.0).view(4, 1).expand(4, 4)
    image, inside = sample(source, torch.eye(2), (8, 8))
    assert torch.allclose(image[:, 4], torch.tensor([0.0, 0, 0, 1, 2, 3, 3, 3]), atol=1e-5)
    assert inside[2:6, 2:6].all() and inside.sum() == 16


def test_views_depend_on_the_seed_alone(lively):
    raw = raw_chunk(CUBE, lively)
    state = torch.get_rng_state()
    first, again = make_views(raw, CUBE, lively), make_views(raw, CUBE, lively)
    other = make_views(dataclasses.replace(raw, seed=1), CUBE, lively)
    assert torch.equal(first.augmented, again.augmented) and torch.equal(first.valid, again.valid)
    assert not torch.allclose(first.clean, other.clean)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_views_of_an_image_differ(geometry, lively):
    views = make_views(raw_chunk(geometry, lively), geometry, lively, num_views=3)
    assert views.clean.shape == (3, 2, 1, *geometry.crop_size)
    assert torch.isfinite(views.augmented).all()
    assert not torch.allclose(views.clean[0], views.clean[1]) and not torch.allclose(views.clean[1], views.clean[2])
    assert not torch.allclose(views.augmented, views.clean)


def test_most_of_a_view_inside_a_large_image_is_valid():
    from hssl_nnunet.plan_schema import load_preset, pretraining_plan

    plan = pretraining_plan(load_preset("default")).views
    geometry = DomainGeometry((24, 24, 24), (1.0, 1.0, 1.0))
    assert make_views(raw_chunk(geometry, plan, batch=40), geometry, plan).valid.float().mean() > 0.95


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_the_same_views(lively):
    plan = dataclasses.replace(lively, intensity=0.0)
    raw = raw_chunk(CUBE, plan)
    here, there = make_views(raw, CUBE, plan), make_views(raw.to("cuda"), CUBE, plan)
    assert torch.allclose(here.clean, there.clean.cpu(), atol=1e-4)
