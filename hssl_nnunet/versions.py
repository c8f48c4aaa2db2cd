"""Versions of what a result depends on; written into every weights file and benchmark result."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "hssl_nnunet",
    "nnunetv2",
    "dynamic_network_architectures",
    "batchgenerators",
    "batchgeneratorsv2",
    "torch",
    "numpy",
    "scipy",
    "SimpleITK",
    "scikit-image",
    "scikit-learn",
    "safetensors",
)
OPTIONAL = ("monai", "statsmodels")  # make the benchmark's numbers; the extra `benchmark` brings them
NOT_INSTALLED = "not installed"


def versions() -> dict[str, str]:
    """Package -> version, Python included; `not installed` where a package is missing, nothing where it is optional."""
    found = {name: _version(name) for name in (*PACKAGES, *OPTIONAL)}
    needed = {name: text for name, text in found.items() if name in PACKAGES or text != NOT_INSTALLED}
    return {"python": platform.python_version(), **needed}


def cpu_model() -> str:
    """Name of the processor, from Linux' `/proc/cpuinfo` where there is one."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(device: str | None) -> dict[str, object]:
    """Versions and hardware, for a result.

    Args:
        device: `cpu` leaves the GPU out; anything else names it, where torch finds one.
    """
    about: dict[str, object] = {"versions": versions(), "cpu": cpu_model(), "cores": os.cpu_count()}
    about["platform"] = platform.platform()
    if device != "cpu":
        import torch

        if torch.cuda.is_available():
            about["gpu"] = torch.cuda.get_device_name()
    return about


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return NOT_INSTALLED
