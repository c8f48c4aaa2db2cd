"""Operators of nnU-Net's networks that are right and fast on a CPU; parameters, names and results stay the same.

Two things are wrong with the ones that torch chooses there:

* oneDNN's bf16 gradients of 3D convolution kernels are wrong for many shapes, at times by memory that nobody wrote, and
  crash on some (`benchmarks/cpu_bf16.py`; torch 2.14 and 2.15). Its outputs, its gradients of the image, and its 2D
  gradients are right, and a 3D gradient is a sum of 2D ones over slices.
* Instance norm lays a channels-last image out anew, forward and backward. Batch norm does not, and on one image at a
  time the two are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


def use_cpu_operators(network: nn.Module) -> None:
    """Let the convolutions and instance norms of a network run as this module has them; in place.

    Leaves of another kind, and convolutions that nnU-Net does not plan (dilation, groups, transposed ones whose kernel
    is not their stride), are left alone.

    Args:
        network: a network of nnU-Net on the CPU or on the meta device, 2D or 3D.
    """
    for module in network.modules():
        found = _REPLACED.get(type(module))
        if found is not None and (not isinstance(module, nn.modules.conv._ConvNd) or _is_plain(module)):
            module.__class__ = found


def _is_plain(conv: nn.modules.conv._ConvNd) -> bool:
    plain = conv.groups == 1 and set(conv.dilation) == {1} and conv.padding_mode == "zeros"
    if not conv.transposed:
        return plain and not isinstance(conv.padding, str)
    return plain and conv.kernel_size == conv.stride and not any((*conv.padding, *conv.output_padding))


# ---------------------------------------------------------------- instance norm


class _InstanceNorm(nn.modules.instancenorm._InstanceNorm):
    """Instance norm as batch norm of one image at a time, which keeps channels-last images as they are."""

    def forward(self, image: Tensor) -> Tensor:
        """Normalise `(B, C, X, Y[, Z])` over its spatial axes."""
        if self.track_running_stats or image.shape[1] != self.num_features:
            return super().forward(image)
        parts = [
            functional.batch_norm(part, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for part in torch.split(image, 1)
        ]
        return torch.cat(parts)


class _InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    pass


class _InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    pass


# ---------------------------------------------------------------- convolutions


class _Convolution(nn.modules.conv._ConvNd):
    """A convolution whose bf16 gradients are right; outside bf16 autocast it is torch's own."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve `(B, C, X, Y[, Z])`."""
        if output_size is not None or not _in_bf16() or not torch.is_grad_enabled():
            sizes = () if output_size is None else (output_size,)
            return super().forward(input, *sizes)  # type: ignore[no-any-return]
        args = (self.stride, self.padding, self.transposed)
        return _BF16Convolution.apply(input, self.weight, self.bias, *args)  # type: ignore[no-any-return]


class _Conv2d(_Convolution, nn.Conv2d):
    pass


class _Conv3d(_Convolution, nn.Conv3d):
    pass


class _ConvTranspose2d(_Convolution, nn.ConvTranspose2d):
    pass


class _ConvTranspose3d(_Convolution, nn.ConvTranspose3d):
    pass


_REPLACED: dict[type[nn.Module], type[nn.Module]] = {
    nn.InstanceNorm2d: _InstanceNorm2d,
    nn.InstanceNorm3d: _InstanceNorm3d,
    nn.Conv2d: _Conv2d,
    nn.Conv3d: _Conv3d,
    nn.ConvTranspose2d: _ConvTranspose2d,
    nn.ConvTranspose3d: _ConvTranspose3d,
}


def _in_bf16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


class _BF16Convolution(torch.autograd.Function):
    """A convolution in bf16, by oneDNN but for the gradient of its kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        transposed: bool,
    ) -> Tensor:
        """Convolve; inputs of any floating type are rounded to bf16, the output is bf16."""
        low, kernel = image.to(torch.bfloat16), weight.to(torch.bfloat16)
        ctx.save_for_backward(low, kernel)
        ctx.geometry, ctx.types = (stride, padding, transposed), (image.dtype, weight.dtype)
        ones, zeros = [1] * len(stride), [0] * len(stride)
        rounded = None if bias is None else bias.to(torch.bfloat16)
        return torch.convolution(low, kernel, rounded, stride, padding, ones, transposed, zeros, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in the types of the inputs."""
        (image, kernel), (stride, padding, transposed) = ctx.saved_tensors, ctx.geometry
        image_type, weight_type = ctx.types
        by_image = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            ones, zeros = [1] * len(stride), [0] * len(stride)
            geometry = (stride, padding, ones, transposed, zeros, 1, [True, False, False])
            by_image = torch.ops.aten.convolution_backward(gradient, image, kernel, None, *geometry)[0].to(image_type)
        if ctx.needs_input_grad[1]:
            by_weight = kernel_gradient(gradient, image, kernel.shape, stride, padding, transposed=transposed)
            by_weight = by_weight.to(weight_type)
        if ctx.needs_input_grad[2]:
            rows = _flat(_channels_last(gradient))
            by_bias = (rows.new_ones(1, len(rows)) @ rows)[0].to(weight_type)  # faster than a sum, which copies to fp32
        return by_image, by_weight, by_bias, None, None, None


def kernel_gradient(
    gradient: Tensor,
    image: Tensor,
    kernel_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    transposed: bool = False,
) -> Tensor:
    """Gradient of a convolution's kernel, by 2D convolutions and products of matrices alone.

    Args:
        gradient: gradient of the output, `(B, out, X', Y'[, Z'])`.
        image: the input, `(B, in, X, Y[, Z])`, of the same type.
        kernel_shape: `(out, in, *kernel_size)`, or `(in, out, *kernel_size)` of a transposed convolution.
        stride: a step for each axis; a transposed convolution's is its kernel size.
        padding: voxels for each axis and side; none for a transposed convolution.
        transposed: whether the convolution is transposed.

    Returns:
        `kernel_shape`, in the type of `image`.
    """
    kernel_size = tuple(kernel_shape[2:])
    rows, columns = _channels_last(gradient), _channels_last(image)
    if transposed:  # each offset of the kernel reaches every stride-th voxel of the output, and no other
        reached = (_every(rows, offset, stride) for offset in product(*map(range, kernel_size)))
        return torch.stack([_flat(columns).T @ _flat(part) for part in reached], -1).view(*kernel_shape)
    if set(kernel_size) == {1}:
        seen = _every(columns, (0,) * len(stride), stride)
        return (_flat(rows).T @ _flat(seen)).view(*kernel_shape)
    if len(kernel_size) == 2:
        return _kernel_gradient_2d(rows, columns, kernel_shape, stride, padding)
    plane = (*kernel_shape[:2], *kernel_shape[3:])
    offsets = range(-padding[0], kernel_size[0] - padding[0])
    slabs = (_slab(rows, columns, offset, stride[0]) for offset in offsets)
    return torch.stack([_kernel_gradient_2d(*slab, plane, stride[1:], padding[1:]) for slab in slabs], 2)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _every(tensor: Tensor, offset: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Of a channels-last batch every stride-th voxel, from an offset on."""
    index = (slice(None), *(slice(start, None, step) for start, step in zip(offset, stride, strict=True)))
    return tensor[index]


def _slab(rows: Tensor, columns: Tensor, offset: int, stride: int) -> tuple[Tensor, Tensor]:
    """Slices of output and input that meet at an offset along the first axis, as batches of 2D images."""
    depth, first = columns.shape[1], -(offset // stride) if offset < 0 else 0
    last = max(first - 1, min(rows.shape[1] - 1, (depth - 1 - offset) // stride))
    start = first * stride + offset
    seen = columns[:, start : last * stride + offset + 1 : stride]
    return rows[:, first : last + 1].flatten(0, 1), seen.flatten(0, 1)


def _kernel_gradient_2d(
    rows: Tensor, columns: Tensor, kernel_shape: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Of channels-last batches `(B, X', Y', out)` and `(B, X, Y, in)`."""
    if not len(rows):  # the offset reaches nothing but padding
        return columns.new_zeros(tuple(kernel_shape))
    kernel = columns.new_empty(tuple(kernel_shape))  # only its shape counts
    geometry = (stride, padding, [1, 1], False, [0, 0], 1, [False, True, False])
    gradient, image = rows.movedim(-1, 1), columns.movedim(-1, 1)
    return torch.ops.aten.convolution_backward(gradient, image, kernel, None, *geometry)[1]  # type: ignore[no-any-return]
