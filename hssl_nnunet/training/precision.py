"""Precision and memory format by what the hardware has."""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor

PrecisionPlan = Literal["auto", "fp32", "bf16"]

ENV_CPU_ISA, ISA_WITHOUT_AMX = "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16"


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware: AVX512-BF16 or AMX on a CPU, sm80 and later on a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public name for these
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return False


def compute_dtype(plan: PrecisionPlan, device: torch.device) -> torch.dtype:
    """Type in which convolutions and products run: bf16 where it is fast, nnU-Net's fp16 on older GPUs, else fp32."""
    if plan == "bf16" or (plan == "auto" and bf16_is_fast(device)):
        return torch.bfloat16
    return torch.float16 if plan == "auto" and device.type == "cuda" else torch.float32


def autocast(plan: PrecisionPlan, device: torch.device) -> torch.autocast:
    """Context in which convolutions and products run in `compute_dtype`."""
    dtype = compute_dtype(plan, device)
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)


def grad_scaler(plan: PrecisionPlan, device: torch.device) -> torch.amp.GradScaler | None:
    """A loss scaler for fp16; bf16 has the range of fp32 and needs none."""
    return torch.amp.GradScaler("cuda") if compute_dtype(plan, device) == torch.float16 else None


def avoid_broken_amx() -> None:
    """Keep the CPU's convolutions off AMX: AVX512-BF16 is slower, but right.

    The AMX kernel for the gradient of a 3D convolution's weights, as oneDNN in torch 2.15 has it, writes outside its
    memory for many shapes: wrong or nan gradients, crashes, hangs. `benchmarks/amx_gradient.py` shows it.
    Must come before the process' first convolution. A limit that the user has set stays.
    """
    os.environ.setdefault(ENV_CPU_ISA, ISA_WITHOUT_AMX)


def memory_format(device: torch.device, dim: int) -> torch.memory_format:
    """Channels last where it helps (CPU and CUDA), else nnU-Net's contiguous format.

    Args:
        device: the device of the run.
        dim: spatial axes, 2 or 3.
    """
    if device.type not in ("cpu", "cuda"):
        return torch.contiguous_format
    return torch.channels_last_3d if dim == 3 else torch.channels_last


def formatted(tensor: Tensor, device: torch.device) -> Tensor:
    """A batch `(B, C, X, Y[, Z])` on the device in its memory format."""
    layout = memory_format(device, tensor.ndim - 2)
    return tensor.to(device, non_blocking=True).contiguous(memory_format=layout)


def describe(device: torch.device, plan: PrecisionPlan = "auto") -> str:
    """One line for `hssl doctor` and the training log, for example `cpu: bfloat16, channels last`."""
    layout = "contiguous" if memory_format(device, 3) == torch.contiguous_format else "channels last"
    return f"{device.type}: {str(compute_dtype(plan, device)).removeprefix('torch.')}, {layout}"
