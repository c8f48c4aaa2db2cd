"""Preprocessed images as nnU-Net writes them, and the objects that read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import pytest

from hssl_nnunet.corpus.manifest import ImageRow
from hssl_nnunet.plan_values import ViewPlan

FOLDER = "Dataset001_Toy/nnUNetPlans_3d_fullres"


@pytest.fixture
def still() -> ViewPlan:
    """Views that change nothing."""
    return ViewPlan(crop_fraction=0.5, overlap=1.0, rotation_degree=0.0, scale=0.0, mirror=False, intensity=0.0)


@pytest.fixture
def lively() -> ViewPlan:
    """Views that change everything."""
    return ViewPlan(crop_fraction=0.5, overlap=0.5, rotation_degree=30.0, scale=0.3, mirror=True, intensity=1.0)


def image_row(case: str, domain: int = 0, channel: int = 0) -> ImageRow:
    return ImageRow(
        domain=domain,
        dataset_name="Dataset001_Toy",
        case=case,
        channel=channel,
        patient=case,
        labelled=True,
        preprocessed=f"{FOLDER}/{case}.b2nd",
        content_hash=case,
        spacing_mm=(1.0, 1.0, 1.0),
        shape=(1, 1, 1),
        groups=("toy",),
    )


@pytest.fixture
def write_image(tmp_path: Path) -> Callable[..., ImageRow]:
    """Writes an array (C, X, Y, Z) as a case's `.b2nd` below `tmp_path`, and returns its row."""

    def write(case: str, array: np.ndarray, channel: int = 0, domain: int = 0) -> ImageRow:
        row = image_row(case, domain, channel)
        path = tmp_path / row.preprocessed
        path.parent.mkdir(parents=True, exist_ok=True)
        chunks = tuple(min(n, 16) for n in array.shape)
        blosc2.asarray(np.ascontiguousarray(array, dtype=np.float32), urlpath=str(path), chunks=(1, *chunks[1:]))
        return row

    return write
