import math

import pytest
import torch
from torch.nn.functional import normalize

from hssl_nnunet.losses.voxel import Points, VoxelEmbeddings, voxel_contrast


def places(images=3, count=5, width=4, dtype=torch.float64):
    z = normalize(torch.randn(2, images, count, width, dtype=dtype), dim=-1)
    return VoxelEmbeddings(z, torch.rand(images, count) < 0.8)


def contrast_loop(voxels, tau):
    images = []
    for first, second, kept in zip(voxels.z[0], voxels.z[1], voxels.kept, strict=True):
        terms = []
        for own, other in ((first, second), (second, first)):
            for i in kept.nonzero()[:, 0].tolist():
                among = [math.exp(float(own[i] @ other[k]) / tau) for k in kept.nonzero()[:, 0].tolist()]
                terms.append(-math.log(math.exp(float(own[i] @ other[i]) / tau) / sum(among)))
        if kept.sum() > 1:  # one place alone finds itself
            images.append(sum(terms) / len(terms))
    return sum(images) / len(images)


def test_is_the_loop_over_its_definition():
    voxels = places(5, 7)
    voxels.kept[1] = False  # an image without a place is left out
    voxels.kept[2] = torch.arange(7) == 3  # and so is one with a single place
    assert float(voxel_contrast(voxels, 0.3)) == pytest.approx(contrast_loop(voxels, 0.3), rel=1e-10)


def test_places_that_do_not_count_touch_neither_value_nor_gradient():
    chunk = places()
    z = chunk.z.masked_fill(~chunk.kept[..., None], 7.0).requires_grad_()
    value = voxel_contrast(VoxelEmbeddings(z, chunk.kept), 0.1)
    value.backward()
    torch.testing.assert_close(value, voxel_contrast(chunk, 0.1))
    assert torch.equal(z.grad.any(-1), chunk.kept.expand(2, -1, -1))


def test_limits():
    alike = VoxelEmbeddings(torch.ones(2, 2, 8, 4) / 2, torch.ones(2, 8, dtype=torch.bool))
    assert float(voxel_contrast(alike, 0.1)) == pytest.approx(math.log(8), rel=1e-6)
    apart = torch.eye(8).expand(2, 2, 8, 8)
    assert float(voxel_contrast(VoxelEmbeddings(apart, alike.kept), 0.05)) < 1e-6
    swapped = torch.stack([apart[0], apart[1].flip(1)])
    assert float(voxel_contrast(VoxelEmbeddings(swapped, alike.kept), 0.05)) == pytest.approx(20, rel=1e-3)


def test_views_are_interchangeable_and_images_do_not_meet():
    chunk = places(4)
    chunk.kept[:, :2] = True
    torch.testing.assert_close(
        voxel_contrast(VoxelEmbeddings(chunk.z.flip(0), chunk.kept), 0.2), voxel_contrast(chunk, 0.2)
    )
    alone = [voxel_contrast(VoxelEmbeddings(chunk.z[:, i : i + 1], chunk.kept[i : i + 1]), 0.2) for i in range(4)]
    torch.testing.assert_close(torch.stack(alone).mean(), voxel_contrast(chunk, 0.2))


def test_without_any_place_it_is_0_with_a_graph():
    z = places().z.requires_grad_()
    value = voxel_contrast(VoxelEmbeddings(z, torch.zeros(3, 5, dtype=torch.bool)), 0.1)
    value.backward()
    assert value.item() == 0 and not z.grad.any()


def test_gradient():
    chunk = places(2, 4, 3)
    z = chunk.z.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: voxel_contrast(VoxelEmbeddings(x, chunk.kept), 0.2), z)


def test_under_bfloat16_autocast():
    chunk = places(dtype=torch.float32)
    expected = voxel_contrast(chunk, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(voxel_contrast(chunk, 0.1), expected, rtol=0, atol=0)


def test_points_of_each_image():
    points = Points(torch.arange(2 * 3 * 4 * 2).view(2, 3, 4, 2), torch.rand(3, 4) < 0.5)
    images = points.images()
    assert torch.equal(torch.cat([p.voxels for p in images], dim=1), points.voxels)
    assert torch.equal(torch.cat([p.kept for p in images]), points.kept)
