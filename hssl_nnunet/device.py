"""Where a training runs: its device, its threads, its GPUs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hssl_nnunet.errors import HSSLError, unknown_name
from hssl_nnunet.ranks import available_cpus

if TYPE_CHECKING:
    import torch

THREADS_VARIABLE = "OMP_NUM_THREADS"


def choose_device(name: str | None) -> torch.device:
    """The device called `name` (nnU-Net's `-device`), or CUDA when there is one, else the CPU.

    `mps` is used only when asked for: it lacks operators that some plans need.

    Raises:
        HSSLError: an unknown name, or a device that this machine lacks.
    """
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = name or ("cuda" if present["cuda"] else "cpu")
    if name not in present:
        raise unknown_name("device", name, present)
    if not present[name]:
        raise HSSLError(
            f"-device {name}: this machine has none that torch can use. See `hssl doctor`, or use -device cpu."
        )
    return torch.device(name)


def set_threads(device: torch.device) -> None:
    """Threads as `nnUNetv2_train` sets them: on a CPU all cores it may use (or OMP_NUM_THREADS), one beside a GPU.

    Raises:
        HSSLError: OMP_NUM_THREADS is no number.
    """
    import torch

    if device.type == "cpu":
        torch.set_num_threads(_wished_threads() or available_cpus())
    elif device.type == "cuda":
        torch.set_num_threads(1)
        if torch.get_num_interop_threads() != 1:  # may be set only once in a process
            torch.set_num_interop_threads(1)


def _wished_threads() -> int | None:
    """What OMP_NUM_THREADS asks for; of its list for nested regions (`2,1`) the first, which is the outermost's."""
    value = os.environ.get(THREADS_VARIABLE, "")
    first = value.partition(",")[0].strip()
    if not value:
        return None
    if not first.isdecimal() or int(first) < 1:
        raise HSSLError(
            f"{THREADS_VARIABLE} is '{value}', expected a number of threads. Run `unset {THREADS_VARIABLE}`, which "
            f"takes every core, or `export {THREADS_VARIABLE}={available_cpus()}`."
        )
    return int(first)


def check_gpus(device: torch.device, num_gpus: int) -> None:
    """Refuse more GPUs than there are.

    Raises:
        HSSLError: with the number that is visible.
    """
    if num_gpus == 1:
        return
    import torch

    visible = torch.cuda.device_count() if device.type == "cuda" else 0
    if not 1 <= num_gpus <= visible:
        raise HSSLError(
            f"-num_gpus {num_gpus}, but {visible} GPUs are visible for -device {device.type}. Use -num_gpus "
            f"{max(visible, 1)}, or make more visible (`hssl doctor` lists them)."
        )
