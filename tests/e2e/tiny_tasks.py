"""Tiny MSD tasks, plan values of the shortest runs, and commands in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

PLANS = "nnUNetCPUPlans"
# array shape (z, y, x) and spacing of SimpleITK (x, y, z)
TASKS = {61: ("Ball", (20, 22, 24), (1.0, 1.0, 1.0)), 62: ("Slab", (10, 32, 32), (1.0, 1.0, 4.0))}
PRETRAINING = {
    "num_iterations_per_epoch": 1,
    "num_val_iterations_per_epoch": 1,
    "save_every": 1,
    "warmup_epochs": 0,
    "chunks_per_step": 1,
    "images_per_chunk": 2,
    "embedding_width": 8,
    "projection_width": 4,
    "probe_every": 1000,
}
FINETUNING = {
    "num_epochs": 1,
    "num_iterations_per_epoch": 1,
    "num_val_iterations_per_epoch": 1,
    "warmup_epochs": 0,
    "seed": 0,
}


def write_task(folder: Path, shape: tuple[int, int, int], spacing: tuple[float, ...]) -> None:
    """Four cases with a mask and one without, each a bright ellipsoid in noise."""
    grid = np.indices(shape).astype(np.float32)
    for index in range(5):
        rng = np.random.default_rng(index)
        centre = np.array(shape)[:, None, None, None] * rng.uniform(0.4, 0.6, (3, 1, 1, 1))
        mask = (((grid - centre) / (np.array(shape)[:, None, None, None] / 4)) ** 2).sum(0) < 1
        parts = {"imagesTr" if index < 4 else "imagesTs": rng.normal(100, 10, shape) + 40 * mask}
        if index < 4:
            parts["labelsTr"] = mask.astype(np.uint8)
        for sub, array in parts.items():
            (folder / sub).mkdir(parents=True, exist_ok=True)
            image = sitk.GetImageFromArray(array.astype(np.uint8 if sub == "labelsTr" else np.float32))
            image.SetSpacing(spacing)
            sitk.WriteImage(image, str(folder / sub / f"case_{index}.nii.gz"))
    content = {
        "name": folder.name,
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "blob"},
        "numTraining": 4,
        "training": [],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
