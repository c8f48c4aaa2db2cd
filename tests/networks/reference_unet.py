"""Slow reference: nnU-Net's two U-Nets written anew over shared tensors, level by level, always in 3D.

It knows nothing of module names or entries. A kernel is collapsed by a sum (convolution) or a mean (transposed
convolution) over the axes that the topology does not have; an image of several channels enters as their mean.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hssl_nnunet.networks.topology import Topology

Tensors = dict[str, Tensor]


def reference_features(shared: Tensors, topology: Topology, image: Tensor) -> dict[str, Tensor]:
    """Features of every encoder and decoder level, keyed `encoder.0`, `decoder.2`, ...

    Args:
        shared: role -> tensor; kernels at most 3x3x3, transposed 2x2x2.
        topology: 2D or 3D.
        image: `(B, C, X, Y[, Z])`.
    """
    image = image.mean(1, keepdim=True)
    features: dict[str, Tensor] = {}
    x = image if topology.dim == 3 else image[:, :, None]
    if topology.family == "ResidualEncoderUNet":
        x = _convs(shared, "encoder.stem", topology, 0, x, stride=(1, 1, 1))
    for level in range(topology.n_stages):
        x = _encoder_level(shared, topology, level, x)
        features[f"encoder.{level}"] = x
    for level in reversed(range(topology.n_stages - 1)):
        up = f"decoder.{level}.transpconv"
        stride = _three(topology.strides[level + 1])
        kernel = _collapse(shared[f"{up}.weight"], stride, mean=True)
        x = functional.conv_transpose3d(x, kernel, shared[f"{up}.bias"], stride)
        x = _convs(
            shared, f"decoder.{level}", topology, level, torch.cat([x, features[f"encoder.{level}"]], 1), (1, 1, 1)
        )
        features[f"decoder.{level}"] = x
    return features if topology.dim == 3 else {key: value[:, :, 0] for key, value in features.items()}


def _encoder_level(shared: Tensors, topology: Topology, level: int, x: Tensor) -> Tensor:
    stride = _three(topology.strides[level])
    if topology.family == "PlainConvUNet":
        return _convs(shared, f"encoder.{level}.0", topology, level, x, stride)
    block = 0
    while f"encoder.{level}.blocks.{block}.conv1.conv.weight" in shared:
        x = _residual_block(shared, f"encoder.{level}.blocks.{block}", topology, level, x, stride)
        stride, block = (1, 1, 1), block + 1
    return x


def _residual_block(shared: Tensors, name: str, topology: Topology, level: int, x: Tensor, stride: tuple) -> Tensor:
    skip = functional.avg_pool3d(x, stride, stride)
    if f"{name}.skip.conv.weight" in shared:
        skip = functional.conv3d(skip, shared[f"{name}.skip.conv.weight"])
        skip = _norm(shared, f"{name}.skip", skip)
    y = functional.leaky_relu(
        _norm(shared, f"{name}.conv1", _conv(shared, f"{name}.conv1", topology, level, x, stride))
    )
    y = _norm(shared, f"{name}.conv2", _conv(shared, f"{name}.conv2", topology, level, y, (1, 1, 1)))
    return functional.leaky_relu(y + skip)


def _convs(shared: Tensors, name: str, topology: Topology, level: int, x: Tensor, stride: tuple) -> Tensor:
    index = 0
    while f"{name}.convs.{index}.conv.weight" in shared:
        conv = f"{name}.convs.{index}"
        x = functional.leaky_relu(_norm(shared, conv, _conv(shared, conv, topology, level, x, stride)))
        stride, index = (1, 1, 1), index + 1
    return x


def _conv(shared: Tensors, name: str, topology: Topology, level: int, x: Tensor, stride: tuple) -> Tensor:
    kernel = _collapse(shared[f"{name}.conv.weight"], _three(topology.kernel_sizes[level]), mean=False)
    padding = [k // 2 for k in kernel.shape[2:]]
    return functional.conv3d(x, kernel, shared[f"{name}.conv.bias"], stride, padding)


def _norm(shared: Tensors, name: str, x: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=shared[f"{name}.norm.weight"], bias=shared[f"{name}.norm.bias"], eps=1e-5)


def _collapse(kernel: Tensor, size: tuple[int, ...], *, mean: bool) -> Tensor:
    axes = [axis for axis in (2, 3, 4) if size[axis - 2] == 1 and kernel.shape[axis] > 1]
    for axis in axes:
        kernel = kernel.sum(axis, keepdim=True) / (kernel.shape[axis] if mean else 1)
    return kernel


def _three(per_axis: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (3 - len(per_axis)) + per_axis
