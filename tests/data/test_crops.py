from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from boxes import bounds_of, mask_of

from hssl_nnunet.data.crops import DomainGeometry, RawChunk, crop_size, read_chunk
from hssl_nnunet.data.sampling import ChunkPlan
from hssl_nnunet.data.views import make_views
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.plan_schema import DomainPlan

CUBE = DomainGeometry((8, 8, 8), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("patch", "total", "fraction", "expected"),
    [
        ((40, 56, 40), (8, 8, 8), 0.5, (24, 32, 24)),
        ((64, 160, 192), (16, 32, 32), 0.5, (32, 96, 96)),
        ((10, 256, 256), (2, 64, 64), 0.5, (6, 128, 128)),
        ((40, 56, 40), (8, 8, 8), 1.0, (40, 56, 40)),
        ((40, 56, 40), (8, 8, 8), 0.01, (8, 16, 8)),  # a bottleneck of one voxel grows
        ((64, 64, 64), (64, 32, 64), 0.1, (64, 64, 64)),
        ((20, 37), (4, 8), 1.0, (20, 32)),  # a patch that the strides do not divide is cut
        ((1, 512, 512), (1, 128, 128), 0.5, (1, 256, 256)),
    ],
)
def test_crops_fit_the_strides(patch, total, fraction, expected):
    assert crop_size(patch, total, fraction) == expected


def test_crops_of_any_topology_have_a_bottleneck_of_more_than_one_voxel():
    rng = np.random.default_rng(0)
    for _ in range(300):
        total = 2 ** rng.integers(0, 6, size=3)
        patch = total * rng.integers(1, 5, size=3) + rng.integers(0, 2, size=3)
        if (patch // total).prod() == 1:
            continue
        size = np.array(crop_size(patch.tolist(), total.tolist(), rng.uniform(0.05, 1)))
        assert (size % total == 0).all() and (size <= patch).all() and (size // total).prod() > 1


def test_a_patch_with_a_bottleneck_of_one_voxel_is_refused():
    with pytest.raises(HSSLError, match="single voxel"):
        crop_size((32, 32, 32), (32, 32, 32), 0.5)


@pytest.mark.parametrize(
    ("spacing", "fine"),
    [
        ((1.0, 1.0, 1.0), (0, 1, 2)),
        ((3.27, 0.98, 0.98), (1, 2)),
        ((5.47, 3.27, 5.47), (0, 1, 2)),
        ((3.0, 1.0, 1.0), (1, 2)),
        ((0.8, 0.8, 5.0), (0, 1)),
        ((0.7, 0.7), (0, 1)),
    ],
)
def test_axes_three_times_coarser_are_not_fine(spacing, fine):
    assert DomainGeometry((8,) * len(spacing), spacing).fine_axes == fine


@pytest.mark.parametrize(
    ("crop", "spacing"),
    [
        ((16, 48, 32), (3.27, 0.98, 0.98)),
        ((24, 32, 24), (1.0, 1.0, 1.0)),
        ((3, 96, 96), (8.0, 1.25, 1.25)),
        ((12, 64, 48), (3.0, 0.91, 0.91)),
        ((24, 40, 24), (5.47, 3.27, 5.47)),
        ((40, 32, 32), (5.0, 1.0, 1.0)),  # the long axis is coarse: the others are not short beside it
    ],
)
def test_spacing_alone_decides_of_crops_that_are_no_slabs(crop, spacing):
    assert DomainGeometry(crop, spacing).fine_axes == DomainGeometry((8, 8, 8), spacing).fine_axes


@pytest.mark.parametrize(
    ("crop", "spacing", "fine"),
    [
        ((8, 64, 64), (1.0, 1.0, 1.0), (1, 2)),
        ((1, 16, 16), (1.0, 1.0, 1.0), (1, 2)),
        ((22, 64, 64), (1.0, 1.0, 1.0), (0, 1, 2)),
        ((12, 64, 48), (2.0, 0.9, 0.9), (0, 1, 2)),
        ((1, 1, 1), (1.0, 1.0, 1.0), ()),
    ],
)
def test_axes_along_which_a_crop_is_a_slab_are_not_fine(crop, spacing, fine, lively):
    geometry = DomainGeometry(crop, spacing)
    assert geometry.fine_axes == fine
    box = [n + 2 * m for n, m in zip(crop, geometry.margin(lively), strict=True)]
    source = torch.zeros(16, 1, *box)
    views = make_views(RawChunk(0, tuple(range(16)), 0, source, bounds_of(torch.ones_like(source))), geometry, lively)
    assert views.valid.float().mean() > 0.97  # of an image that goes on beyond the box nothing is padding


def test_margin_is_nothing_for_views_that_stay_and_at_most_half_a_crop(still, lively):
    anisotropic = DomainGeometry((8, 32, 32), (5.0, 1.0, 1.0))
    assert anisotropic.margin(still) == (0, 0, 0)
    assert anisotropic.margin(lively) == (2, 16, 16)  # the coarse axis only shifts, by (1 - 0.5) * 8 / 2
    assert anisotropic.margin(dataclasses.replace(lively, rotation_degree=0.0, scale=0.1)) == (2, 10, 10)


@pytest.mark.parametrize(("dim", "spacing", "patch"), [(3, (3.0, 1.0, 1.0), (16, 32, 32)), (2, (1.0, 1.0), (32, 32))])
def test_geometry_of_a_domain_follows_its_plan(lively, dim, spacing, patch):
    strides = [[1] * dim, [1, 2, 2][-dim:], [2] * dim]
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 16],
            "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
            "kernel_sizes": [[3] * dim] * 3,
            "strides": strides,
            "n_conv_per_stage": 2,
            "n_conv_per_stage_decoder": 2,
        },
    }
    domain = DomainPlan(
        dataset_name="Dataset001_Toy",
        plans_name="nnUNetPlans",
        data_identifier="nnUNetPlans_3d_fullres",
        modality="CT",
        groups=("toy",),
        num_images=1,
        spacing=(3.0, 1.0, 1.0),
        patch_size=patch,
        architecture=architecture,
    )
    assert DomainGeometry.from_domain(domain, lively) == DomainGeometry(tuple(n // 2 for n in patch), spacing)


def positions(shape: tuple[int, ...]) -> np.ndarray:
    """An image (1, X, Y, Z) whose voxels tell where they are."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return (10000 * x + 100 * y + z)[None].astype(np.float32)


def valid_of(chunk: RawChunk) -> torch.Tensor:
    return mask_of(chunk.bounds, chunk.source.shape[2:])


def test_boxes_are_parts_of_the_image(write_image, tmp_path, lively):
    rows = [
        write_image(f"case{i}", np.concatenate([positions((30, 31, 32)) * 0, positions((30, 31, 32))]), 1)
        for i in (0, 1)
    ]
    chunk = read_chunk(ChunkPlan(0, (1, 0, 1), 7), rows, CUBE, lively, tmp_path)
    assert chunk.source.shape == (3, 1, 16, 16, 16) and chunk.source.dtype == torch.float32
    assert chunk.bounds.shape == (3, 3, 2)
    image = positions((30, 31, 32))[0]
    for source, valid in zip(chunk.source[:, 0], valid_of(chunk)[:, 0], strict=True):
        corner = source[tuple(valid.nonzero()[0])].int().item()
        start = (corner // 10000, corner // 100 % 100, corner % 100)
        size = (valid.nonzero().amax(0) - valid.nonzero().amin(0) + 1).tolist()
        part = image[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))]
        np.testing.assert_array_equal(source[valid].numpy(), part.ravel())
    assert not torch.equal(chunk.source[0], chunk.source[2])  # the same image, at another place


def test_crops_lie_inside_a_large_image_wherever_its_views_go(write_image, tmp_path, lively):
    row = write_image("case", positions((20, 14, 12)))
    offset, margin = CUBE.largest_offset(lively), CUBE.margin(lively)
    reached = tuple(slice(m - o, m + 8 + o) for m, o in zip(margin, offset, strict=True))
    starts = set()
    for seed in range(60):
        chunk = read_chunk(ChunkPlan(0, (0,), seed), [row], CUBE, lively, tmp_path)
        assert valid_of(chunk)[0, 0][reached].all()
        starts.add(int(chunk.source[0, 0, 4, 8, 8]) // 10000)
    assert starts == set(range(2, 11))  # every place along the first axis: 20 - 8 - 2 * 2 steps, and one


def test_padding_repeats_the_edge_and_is_invalid(write_image, tmp_path, lively):
    row = write_image("case", positions((5, 40, 1)))
    for seed in range(5):
        chunk = read_chunk(ChunkPlan(0, (0,), seed), [row], CUBE, lively, tmp_path)
        source, valid = chunk.source[0, 0].int(), valid_of(chunk)[0, 0]
        assert valid[:, 8, 8].sum() == 5 and valid[8, 8, :].sum() == 1
        assert valid[8, 8, 8]  # the centre
        assert valid.sum() == 5 * valid[8, :, 8].sum()
        assert set((source // 10000).unique().tolist()) == set(range(5))
        assert (source[0] == source[1]).all() and (source % 100 == 0).all()


def test_crops_of_background_alone_are_drawn_again(write_image, tmp_path, still):
    image = np.random.default_rng(0).normal(size=(1, 64, 8, 8)).astype(np.float32)
    image[:, :32] *= 0.02  # the noise of a scanner in the air
    row = write_image("case", image)
    chunks = [read_chunk(ChunkPlan(0, (0,), seed), [row], CUBE, still, tmp_path) for seed in range(200)]
    empty = np.mean([chunk.source.std().item() < 0.05 for chunk in chunks])
    assert empty < 0.15  # 25 of 57 places are empty: 0.44 in one try, 0.037 in four


def test_a_constant_image_is_read_all_the_same(write_image, tmp_path, still):
    row = write_image("case", np.zeros((1, 9, 9, 9)))
    assert read_chunk(ChunkPlan(0, (0,), 0), [row], CUBE, still, tmp_path).source.eq(0).all()


def test_2d_reads_random_slices(write_image, tmp_path, still):
    row = write_image("case", positions((6, 20, 30)))
    geometry = DomainGeometry((8, 16), (1.0, 1.0))
    slices = set()
    for seed in range(40):
        chunk = read_chunk(ChunkPlan(0, (0,), seed), [row], geometry, still, tmp_path)
        assert chunk.source.shape == (1, 1, 8, 16)
        (index,) = (chunk.source.int() // 10000).unique().tolist()
        slices.add(index)
        assert (chunk.source.diff(dim=2) == 100).all() and (chunk.source.diff(dim=3) == 1).all()
    assert slices == set(range(6))


def test_boxes_depend_on_the_seed_alone(write_image, tmp_path, lively):
    rows = [write_image("case", positions((40, 40, 40)))]
    first, again, other = (read_chunk(ChunkPlan(0, (0,), s), rows, CUBE, lively, tmp_path).source for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def damage_missing(content: bytes) -> bytes | None:
    return None


def damage_truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damage_blank(content: bytes) -> bytes:
    return content[:500] + bytes(len(content) - 1000) + content[-500:]


@pytest.mark.parametrize("damage", [damage_missing, damage_truncated, damage_blank])
def test_a_broken_file_names_the_case_and_the_remedy(write_image, tmp_path, lively, damage):
    row = write_image("case_17", np.random.default_rng(0).normal(size=(1, 32, 32, 32)))
    path = tmp_path / row.preprocessed
    content = damage(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HSSLError, match=r"case_17 of Dataset001_Toy.*Remove that file.*hssl plan_and_preprocess"):
        read_chunk(ChunkPlan(0, (0,), 0), [row], CUBE, lively, tmp_path)


def test_a_missing_channel_names_the_shape(write_image, tmp_path, lively):
    row = write_image("case_17", np.zeros((1, 9, 9, 9)), channel=1)
    with pytest.raises(HSSLError, match=r"case_17.*\(1, 9, 9, 9\) has no channel 1.*hssl corpus"):
        read_chunk(ChunkPlan(0, (0,), 0), [row], CUBE, lively, tmp_path)
