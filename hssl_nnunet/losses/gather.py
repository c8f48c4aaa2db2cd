"""Rows of all processes in one tensor, with gradient, so that W processes train as one with W times the images."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_with_gradient(x: Tensor) -> Tensor:
    """Concatenate the rows of every process, in the order of their ranks; `x` itself when nothing is distributed.

    Every process must compute the *same* loss from the gathered rows. The gradient of a process' own rows is then
    complete at home, and its sum over the W copies of the loss is W times it: exactly what the mean of gradients in
    `DistributedDataParallel` turns into the gradient of one process that holds all rows. The backward pass needs no
    communication, so it cannot run into the order of DDP's own.

    Args:
        x: (N, ...) of any type; N is the same in every process.

    Returns:
        (W * N, ...), differentiable with respect to `x`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


def mean_over_images(errors: Tensor, counted: Tensor) -> Tensor:
    """Mean over the images that count; its mean over processes is the value over the images of all of them.

    Args:
        errors: (N,) of this process' images, 0 where an image does not count.
        counted: (N,) bool.

    Returns:
        Scalar; 0, with a graph, where no image counts.
    """
    # processes may count different numbers of images: their mean, not the own number, makes DDP's mean the global one
    images = gather_with_gradient(counted.sum()[None]).to(errors.dtype).mean()
    return errors.sum() / images.clamp(min=1e-6)  # 0 images: 0 / 1e-6


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, x)
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        processes = dist.get_world_size()
        return processes * grads[0].chunk(processes)[dist.get_rank()]
