"""A corpus of three tiny domains, written directly, and trainers on it.

`Cube` and `Scan` have cubic voxels and three and two levels, `Slab` is anisotropic with flat first kernels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from hssl_nnunet.corpus.manifest import ImageRow, write_manifest
from hssl_nnunet.data.crops import RawChunk
from hssl_nnunet.plan_schema import CorpusBlock, DomainPlan, load_preset, pretraining_plan
from hssl_nnunet.training.pretrainer import HSSLPretrainer
from hssl_nnunet.typed_json import merged, to_json

CORPUS = "Dataset900_Tiny"
PLANS_NAME = "nnUNetCPUPlans"
IDENTIFIER = f"{PLANS_NAME}_3d_fullres"
IMAGES = 6  # of each domain
CUBE, SLAB, SCAN = range(3)
NAMES = ("Dataset001_Cube", "Dataset002_Slab", "Dataset003_Scan")
GROUPS = (("brain", "MR"), ("heart", "MR"), ("chest", "CT"))
SPACINGS = ((1.0, 1.0, 1.0), (5.0, 1.0, 1.0), (2.0, 2.0, 2.0))
PATCHES = ((16, 16, 16), (4, 16, 16), (16, 8, 16))
SHAPES = ((18, 20, 19), (5, 22, 20), (14, 3, 18))  # Scan is thinner than its crop: its views are padded
SMOOTHNESS = (0.8, 2.0, 4.0)  # voxels: what tells the domains apart

QUICK = {
    "num_epochs": 4,
    "num_iterations_per_epoch": 3,
    "num_val_iterations_per_epoch": 2,
    "save_every": 1,
    "chunks_per_step": 2,
    "images_per_chunk": 2,
    "held_out_fraction": 0.3,
    "warmup_epochs": 1,
    "embedding_width": 8,
    "projection_width": 4,
    "probe_every": 2,
    "precision": "fp32",
    "num_workers": 0,
    "seed": 3,
    "loss": {"mask_block_voxel": 2},
}


def architecture(kernels: list, strides: list, features: list[int]) -> dict[str, Any]:
    """A plan's `architecture` entry of a plain U-Net."""
    dim, n = len(kernels[0]), len(kernels)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": n,
            "features_per_stage": features,
            "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
            "kernel_sizes": kernels,
            "strides": strides,
            "n_conv_per_stage": [1] * n,
            "n_conv_per_stage_decoder": [1] * (n - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


ARCHITECTURES = (
    architecture([[3, 3, 3]] * 3, [[1, 1, 1], [2, 2, 2], [2, 2, 2]], [4, 8, 8]),
    architecture([[1, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2]], [4, 8]),
    architecture([[3, 3, 3]] * 2, [[1, 1, 1], [2, 2, 2]], [4, 8]),
)


def configuration(entry: dict[str, Any], patch: tuple[int, ...], spacing: tuple[float, ...]) -> dict[str, Any]:
    """A `3d_fullres` configuration of nnU-Net's plans."""
    resampling: dict[str, Any] = {}
    for kind in ("data", "seg", "probabilities"):
        resampling[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{kind}_kwargs"] = {
            "is_seg": kind == "seg",
            "order": 1,
            "order_z": 0,
            "force_separate_z": None,
        }
    return {
        "data_identifier": IDENTIFIER,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        **resampling,
        "architecture": entry,
        "batch_dice": False,
    }


def plans(name: str, entry: dict[str, Any], plans_name: str = PLANS_NAME) -> dict[str, Any]:
    """A plans file of nnU-Net 2.8 with one configuration."""
    return {
        "dataset_name": name,
        "plans_name": plans_name,
        "original_median_spacing_after_transp": entry["spacing"],
        "original_median_shape_after_transp": entry["patch_size"],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": entry},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }


def corpus_block(**overrides: Any) -> CorpusBlock:
    """The corpus' `hssl` block; `overrides` of the pretraining plan on top of `QUICK`."""
    domains = tuple(
        DomainPlan(
            dataset_name=NAMES[d],
            plans_name=PLANS_NAME,
            data_identifier=IDENTIFIER,
            modality=GROUPS[d][-1],
            groups=GROUPS[d],
            num_images=IMAGES,
            spacing=SPACINGS[d],
            patch_size=PATCHES[d],
            architecture=ARCHITECTURES[d],
        )
        for d in range(3)
    )
    values = merged(QUICK, overrides)
    return CorpusBlock(domains=domains, pretraining=pretraining_plan(load_preset("cpu"), **values))


def write_corpus(preprocessed: Path, **overrides: Any) -> Path:
    """Write domains and corpus into `nnUNet_preprocessed`; returns the corpus' folder."""
    rows = [_write_image(preprocessed, domain, index) for domain in range(3) for index in range(IMAGES)]
    folder = preprocessed / CORPUS
    folder.mkdir()
    write_manifest(folder / "manifest.csv", rows)
    body = plans(CORPUS, configuration(ARCHITECTURES[CUBE], PATCHES[CUBE], SPACINGS[CUBE]))
    files = {
        "dataset.json": {
            "channel_names": {"0": "image"},
            "labels": {"background": 0, "image": 1},
            "numTraining": len(rows),
            "file_ending": ".nii.gz",
        },
        "dataset_fingerprint.json": {},
        f"{PLANS_NAME}.json": {**body, "hssl": to_json(corpus_block(**overrides))},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def _write_image(preprocessed: Path, domain: int, index: int) -> ImageRow:
    case = f"case_{index}"
    rng = np.random.default_rng([domain, index])
    voxels = gaussian_filter(rng.normal(size=SHAPES[domain]), SMOOTHNESS[domain])
    voxels = ((voxels - voxels.mean()) / voxels.std()).astype(np.float32)
    path = preprocessed / NAMES[domain] / IDENTIFIER / f"{case}.b2nd"
    path.parent.mkdir(parents=True, exist_ok=True)
    blosc2.asarray(voxels[None], urlpath=str(path))
    return ImageRow(
        domain=domain,
        dataset_name=NAMES[domain],
        case=case,
        channel=0,
        patient=f"{NAMES[domain]}_{case}",
        labelled=True,
        preprocessed=path.relative_to(preprocessed).as_posix(),
        content_hash=f"hash of {domain} {index}",
        spacing_mm=SPACINGS[domain],
        shape=SHAPES[domain],
        groups=GROUPS[domain],
    )


def pretrainer(
    folder: Path, overrides: Mapping[str, Any] | None = None, device: str = "cpu", **kwargs: Any
) -> HSSLPretrainer:
    """A trainer on a written corpus, as nnU-Net makes it; `overrides` change the pretraining plan."""
    content = json.loads((folder / f"{PLANS_NAME}.json").read_text())
    content["hssl"]["pretraining"] = merged(content["hssl"]["pretraining"], dict(overrides or {}))
    content["continue_training"] = False
    dataset_json = json.loads((folder / "dataset.json").read_text())
    return HSSLPretrainer(content, "3d_fullres", "all", dataset_json, torch.device(device), **kwargs)


def started(folder: Path, overrides: Mapping[str, Any] | None = None, device: str = "cpu") -> HSSLPretrainer:
    """A trainer with network and loaders."""
    trainer = pretrainer(folder, overrides, device)
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    return trainer


def batch_of_all_domains(trainer: HSSLPretrainer) -> list[RawChunk]:
    """One raw chunk of each domain."""
    found: dict[int, RawChunk] = {}
    while len(found) < len(NAMES):
        found |= {raw.domain: raw for raw in next(trainer.dataloader_train)}
    return [found[domain] for domain in range(len(NAMES))]
