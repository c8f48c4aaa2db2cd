"""Precision and memory format by what the hardware has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hssl_nnunet.plan_values import Precision


def bf16_is_fast(device: torch.device) -> bool:
    """Whether bf16 is faster on the device than what nnU-Net uses: on GPUs from sm80 and on some CPUs.

    These are CPUs with AMX, and AMD's with AVX512-BF16: they train a small network faster in bf16, Intel's AVX512-BF16
    without AMX slower (`benchmarks/cpu_bf16.py`). It needs `use_cpu_operators`: torch's own gradients are wrong on some
    of them.
    """
    if device.type == "cpu":
        return _has_amx() or _has_bf16_of_amd()
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _has_amx() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())  # no public name yet


def _has_bf16_of_amd() -> bool:
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases of torch do not tell
    return bool(told.get("avx512_bf16")) and "AMD" in told.get("cpu_name", "")


def compute_dtype(plan: Precision, device: torch.device) -> torch.dtype:
    """Type in which convolutions and products run: bf16 where it is fast, nnU-Net's fp16 on older GPUs, else fp32."""
    if plan == "bf16" or (plan == "auto" and bf16_is_fast(device)):
        return torch.bfloat16
    return torch.float16 if plan == "auto" and device.type == "cuda" else torch.float32


@contextmanager
def autocast(plan: Precision, device: torch.device) -> Iterator[None]:
    """Context in which convolutions and products run in `compute_dtype`, under nnU-Net's own autocast too.

    nnU-Net's names no type, hence takes the default of its device, which is ours inside of this context only.
    """
    dtype, before = compute_dtype(plan, device), torch.get_autocast_dtype(device.type)
    enabled = dtype != torch.float32
    torch.set_autocast_dtype(device.type, dtype)
    try:
        with torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled):
            yield
    finally:
        torch.set_autocast_dtype(device.type, before)


def grad_scaler(plan: Precision, device: torch.device) -> torch.amp.GradScaler | None:
    """A loss scaler for fp16; bf16 has the range of fp32 and needs none."""
    return torch.amp.GradScaler("cuda") if compute_dtype(plan, device) == torch.float16 else None


def memory_format(device: torch.device, dim: int, *, compiled: bool = False) -> torch.memory_format:
    """Channels last where it helps: on CPUs, and on GPUs in compiled networks; else nnU-Net's contiguous format.

    Uncompiled it is the slower format on a GPU, where torch's own instance norm does not keep it
    (`benchmarks/layouts.py`).

    Args:
        device: the device of the run.
        dim: spatial axes, 2 or 3.
        compiled: whether the network is compiled.
    """
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not compiled):
        return torch.contiguous_format
    return torch.channels_last_3d if dim == 3 else torch.channels_last


def formatted(tensor: Tensor, device: torch.device, *, compiled: bool = False) -> Tensor:
    """A batch `(B, C, X, Y[, Z])` on the device in its memory format."""
    layout = memory_format(device, tensor.ndim - 2, compiled=compiled)
    return tensor.to(device, non_blocking=True).contiguous(memory_format=layout)


def describe(device: torch.device, plan: Precision = "auto", *, compiled: bool = False) -> str:
    """One line for `hssl doctor` and the training log, for example `cpu: float32, channels last`."""
    layout = "contiguous" if memory_format(device, 3, compiled=compiled) == torch.contiguous_format else "channels last"
    return f"{device.type}: {str(compute_dtype(plan, device)).removeprefix('torch.')}, {layout}"
