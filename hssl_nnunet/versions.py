"""Versions of what a result depends on; written into every weights file and benchmark result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "hssl_nnunet",
    "nnunetv2",
    "dynamic_network_architectures",
    "batchgenerators",
    "batchgeneratorsv2",
    "torch",
    "numpy",
    "SimpleITK",
    "scikit-image",
    "scikit-learn",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Package -> version, Python included; `not installed` where a package is missing."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
