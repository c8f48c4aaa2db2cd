"""How near a piece of work is to what the hardware can do: its operations and bytes counted, the ceilings measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from common import synchronise
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def timed(device: torch.device, part: Callable[[], Any]) -> float:
    """Seconds of a part, with what it gave the device to do."""
    synchronise(device)
    begin = time.perf_counter()
    part()
    synchronise(device)
    return time.perf_counter() - begin


class Bytes(TorchDispatchMode):
    """Counts the bytes that operations read and write; views and shapes move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = filter(torch.is_tensor, tree_leaves((args, kwargs, out)))
            self.moved += sum(t.numel() * t.element_size() for t in tensors)
        return out


def counted(part: Callable[[], Any]) -> tuple[int, int]:
    """Floating point operations (of convolutions and matrix products) and bytes of a part.

    A compiled network runs uncompiled meanwhile, for nothing is seen in a compiled graph: its bytes are those before
    fusion.
    """
    with torch.compiler.set_stance("force_eager"):
        with FlopCounterMode(display=False) as flops:
            part()
        with Bytes() as sizes:
            part()
    return flops.get_total_flops(), sizes.moved


def ceilings(device: torch.device, dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """The best of a large convolution (forward), a matrix product and a copy."""
    edge, width, side = (64, 64, 2048) if device.type == "cpu" else (128, 128, 8192)
    image = torch.randn(1, width, *[edge] * 3, device=device, dtype=dtype).to(memory_format=torch.channels_last_3d)
    kernel = torch.randn(width, width, 3, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last_3d)
    square, block = torch.randn(side, side, device=device, dtype=dtype), torch.randn(2**26, device=device)
    target = torch.empty_like(block)
    work: dict[str, tuple[float, Callable[[], Any]]] = {
        "convolution_gflop_per_s": (2 * image.numel() * width * 27, lambda: torch.conv3d(image, kernel, padding=1)),
        "matmul_gflop_per_s": (2 * side**3, lambda: square @ square),
        "copy_gb_per_s": (2 * block.numel() * block.element_size(), lambda: target.copy_(block)),
    }
    with torch.no_grad():
        best = {name: min(timed(device, part) for _ in range(repeats)) for name, (_, part) in work.items()}
    return {name: round(amount / best[name] / 1e9, 1) for name, (amount, _) in work.items()}


def reached(part: Callable[[], Any], seconds: float, found: dict[str, float]) -> dict[str, float]:
    """Rates of a part that takes some seconds, and their shares of the ceilings."""
    flops, moved = counted(part)
    return {
        "gflop": round(flops / 1e9, 2),
        "gflop_per_s": round(flops / seconds / 1e9, 1),
        "of_convolution_ceiling": round(flops / seconds / 1e9 / found["convolution_gflop_per_s"], 3),
        "gb_per_s": round(moved / seconds / 1e9, 2),
        "of_copy_ceiling": round(moved / seconds / 1e9 / found["copy_gb_per_s"], 3),
    }
