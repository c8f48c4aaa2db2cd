"""A collapsed kernel answers as the full 3D kernel wherever the image is constant along the axis."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hssl_nnunet.networks.projection import Entry, project

CONV, UP = "encoder.0.0.convs.0.conv.weight", "decoder.0.transpconv.weight"


def projected(kernel: Tensor, shape: tuple[int, ...], role: str = CONV) -> Tensor:
    return project({role: kernel}, [Entry("weight", role, shape, "adapted")])["weight"]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def constant_along(axes: tuple[int, ...], size: int = 9) -> Tensor:
    """An image `(1, 4, size, size, size)` that does not change along these axes."""
    return random(1, 4, *(1 if axis in axes else size for axis in (2, 3, 4))).expand(1, 4, size, size, size)


def interior(x: Tensor, margin: int = 2) -> Tensor:
    """Voxels that no kernel reaches from the zero padding."""
    return x[:, :, margin:-margin, margin:-margin, margin:-margin]


def same(x: Tensor, kernel: Tensor) -> Tensor:
    return functional.conv3d(x, kernel, padding=[k // 2 for k in kernel.shape[2:]])


@pytest.mark.parametrize("axes", [(2,), (3,), (4,), (2, 3), (2, 4), (2, 3, 4)])
@pytest.mark.parametrize(("full", "thin"), [(3, 1), (5, 1), (5, 3)])
def test_thinner_kernel(axes: tuple[int, ...], full: int, thin: int) -> None:
    kernel = random(6, 4, full, full, full)
    collapsed = projected(kernel, (6, 4, *(thin if axis in axes else full for axis in (2, 3, 4))))
    x = constant_along(axes)
    torch.testing.assert_close(interior(same(x, collapsed)), interior(same(x, kernel)))


def test_thinner_kernel_answers_otherwise_where_the_image_changes() -> None:
    kernel, x = random(6, 4, 3, 3, 3), constant_along(())
    assert (interior(same(x, projected(kernel, (6, 4, 1, 3, 3)))) - interior(same(x, kernel))).abs().max() > 0.1


def test_2d_kernel_answers_on_a_slice() -> None:
    kernel, x = random(6, 4, 3, 3, 3), constant_along((2,))
    flat = functional.conv2d(x[:, :, 4], projected(kernel, (6, 4, 3, 3)), padding=1)
    torch.testing.assert_close(flat, same(x, kernel)[:, :, 4])


def test_2d_kernel_of_a_2d_corpus_is_the_same_kernel() -> None:
    kernel = random(6, 4, 1, 3, 3)
    assert torch.equal(projected(kernel, (6, 4, 3, 3)), kernel[:, :, 0])


@pytest.mark.parametrize(("thin", "full"), [(1, 3), (3, 5), (1, 5)])
def test_thicker_kernel_answers_alike_on_every_image(thin: int, full: int) -> None:
    kernel, x = random(6, 4, thin, 3, thin), random(1, 4, 9, 9, 9)
    torch.testing.assert_close(same(x, projected(kernel, (6, 4, full, 3, full))), same(x, kernel))


def test_thinner_along_one_axis_and_thicker_along_another() -> None:
    kernel, x = random(6, 4, 3, 3, 1), constant_along((2,))
    collapsed = projected(kernel, (6, 4, 1, 3, 3))
    torch.testing.assert_close(interior(same(x, collapsed)), interior(same(x, kernel)))


def up(x: Tensor, kernel: Tensor) -> Tensor:
    """nnU-Net's transposed convolution: the stride is the kernel."""
    return functional.conv_transpose3d(x, kernel, stride=tuple(kernel.shape[2:]))


@pytest.mark.parametrize("stride", [s for s in itertools.product((1, 2), repeat=3) if s != (2, 2, 2)])
def test_transposed_convolution_of_stride_1_is_the_mean_of_the_two_voxels(stride: tuple[int, int, int]) -> None:
    kernel, x = random(4, 6, 2, 2, 2), random(1, 4, 3, 3, 3)
    expected = functional.avg_pool3d(up(x, kernel), tuple(2 // s for s in stride))
    torch.testing.assert_close(up(x, projected(kernel, (4, 6, *stride), UP)), expected)


def test_transposed_2d_convolution_is_the_mean_over_depth() -> None:
    kernel, x = random(4, 6, 2, 2, 2), random(1, 4, 3, 3)
    flat = functional.conv_transpose2d(x, projected(kernel, (4, 6, 2, 2), UP), stride=2)
    torch.testing.assert_close(flat, up(x[:, :, None], kernel).mean(2))


def test_transposed_convolution_of_stride_4_from_stride_2_repeats_each_voxel() -> None:
    kernel, x = random(4, 6, 2, 2, 2), random(1, 4, 3, 3, 3)
    expected = up(x, kernel).repeat_interleave(2, dim=3)
    torch.testing.assert_close(up(x, projected(kernel, (4, 6, 2, 4, 2), UP)), expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_transposed_convolution_of_smaller_stride_from_stride_4_is_a_mean(stride: int) -> None:
    kernel, x = random(4, 6, 4, 2, 2), random(1, 4, 3, 3, 3)
    expected = functional.avg_pool3d(up(x, kernel), (4 // stride, 1, 1))
    torch.testing.assert_close(up(x, projected(kernel, (4, 6, stride, 2, 2), UP)), expected)


def test_a_constant_image_keeps_its_response_for_every_adaptation() -> None:
    kernel, constant = random(6, 4, 5, 5, 5), constant_along((2, 3, 4))
    expected = interior(same(constant, kernel))
    for shape in itertools.product((1, 3, 5), repeat=3):
        torch.testing.assert_close(interior(same(constant, projected(kernel, (6, 4, *shape)))), expected)


@pytest.mark.parametrize("shape", list(itertools.product((1, 3, 5, 7), repeat=3)))
def test_adaptation_keeps_the_centre_of_the_kernel(shape: tuple[int, int, int]) -> None:
    kernel = random(2, 2, 5, 5, 5)
    mirrored = projected(kernel.flip(2, 3, 4), (2, 2, *shape))
    torch.testing.assert_close(mirrored, projected(kernel, (2, 2, *shape)).flip(2, 3, 4))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_stem_of_several_channels_sees_their_mean(channels: int) -> None:
    kernel, x = random(6, 1, 3, 3, 3), random(1, channels, 9, 9, 9)
    torch.testing.assert_close(
        same(x, projected(kernel, (6, channels, 3, 3, 3))), same(x.mean(1, keepdim=True), kernel)
    )


SHAPES = [
    (CONV, (2, 2, 3, 3, 3), (2, 2, 1, 3, 3)),
    (CONV, (2, 2, 5, 5, 5), (2, 2, 3, 5, 1)),
    (CONV, (2, 2, 3, 1, 3), (2, 2, 5, 3, 3)),
    (CONV, (2, 1, 3, 3, 3), (2, 3, 3, 3)),
    (UP, (2, 2, 2, 2, 2), (2, 2, 1, 2, 4)),
    (UP, (2, 2, 4, 2, 2), (2, 2, 2, 2)),
]


@pytest.mark.parametrize(("role", "full", "shape"), SHAPES)
def test_projection_is_linear_and_its_gradient_right(role: str, full: tuple[int, ...], shape: tuple[int, ...]) -> None:
    a, b = random(*full), random(*full) * 3 + 1
    torch.testing.assert_close(
        projected(2 * a + b, shape, role), 2 * projected(a, shape, role) + projected(b, shape, role)
    )
    assert torch.autograd.gradcheck(lambda k: projected(k, shape, role), a.requires_grad_())
