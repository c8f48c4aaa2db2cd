"""A tiny target dataset, tiny networks of both families, and weights files with everything in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hssl_nnunet.networks.shared_weights import SharedWeights
from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.plan_schema import DomainPlan, load_preset, pretraining_plan
from hssl_nnunet.transfer.weights_file import SeenImage, WeightsMetadata, save_weights

DATASET = "Dataset004_Tiny"
PLAIN, RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"
FAMILIES = (PLAIN, RESIDUAL)
PLANS = {PLAIN: "nnUNetCPUPlans", RESIDUAL: "nnUNetResEncUNetMPlans"}
CHANNELS = 2
PATCH = (8, 16, 16)

# the corpus: two levels of cubic kernels; the target: a flat first kernel and one level more
SOURCE = {"kernels": [[3, 3, 3]] * 2, "strides": [[1, 1, 1], [2, 2, 2]], "features": [4, 8]}
TARGET = {
    "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "features": [4, 8, 8],
}


def architecture(family: str, kernels: list, strides: list, features: list) -> dict[str, Any]:
    """A plan's `architecture` entry."""
    dim, n = len(kernels[0]), len(kernels)
    blocks = {"n_conv_per_stage": [2] * n} if family == PLAIN else {"n_blocks_per_stage": [1] * n}
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{family}",
        "arch_kwargs": {
            "n_stages": n,
            "features_per_stage": features,
            "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
            "kernel_sizes": kernels,
            "strides": strides,
            **blocks,
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


def dataset_json(channels: int = CHANNELS) -> dict[str, Any]:
    return {
        "channel_names": {str(c): "MRI" for c in range(channels)},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }


def plans(family: str, channels: int = CHANNELS) -> dict[str, Any]:
    """A plans file of nnU-Net 2.8 for a volume of 1 mm."""
    resampling = {
        f"resampling_fn_{kind}{suffix}": value
        for kind in ("data", "seg", "probabilities")
        for suffix, value in (
            ("", "resample_data_or_seg_to_shape"),
            ("_kwargs", {"is_seg": kind == "seg", "order": 1, "order_z": 0, "force_separate_z": None}),
        )
    }
    fullres = {
        "data_identifier": f"{PLANS[family]}_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(PATCH),
        "median_image_size_in_voxels": list(PATCH),
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        **resampling,
        "architecture": architecture(family, **TARGET),
        "batch_dice": False,
    }
    flat = {key: [level[1:] for level in TARGET[key]] for key in ("kernels", "strides")}
    return {
        "dataset_name": DATASET,
        "plans_name": PLANS[family],
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": list(PATCH),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "2d": {**fullres, "architecture": architecture(family, **flat, features=TARGET["features"])},
            "3d_fullres": fullres,
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "2d"},
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): {} for c in range(channels)},
    }


def write_target(preprocessed: Path, family: str = PLAIN) -> Path:
    """Write what seeding reads of a preprocessed dataset; returns its folder."""
    folder = preprocessed / DATASET
    for sub in ("gt_segmentations", f"{PLANS[family]}_3d_fullres"):
        (folder / sub).mkdir(parents=True)
    for case in range(4):
        (folder / "gt_segmentations" / f"case_{case}.nii.gz").touch()
    (folder / "dataset.json").write_text(json.dumps(dataset_json()))
    (folder / f"{PLANS[family]}.json").write_text(json.dumps(plans(family)))
    return folder


def source_topology(family: str = PLAIN) -> Topology:
    return Topology.from_architecture(architecture(family, **SOURCE))


def shared_tensors(family: str = PLAIN, seed: int = 0) -> dict[str, Tensor]:
    """Random values for every role of the corpus' shared weights."""
    generator = torch.Generator().manual_seed(seed)
    shapes = SharedWeights([source_topology(family)]).shapes()
    return {role: torch.randn(shape, generator=generator) for role, shape in shapes.items()}


def seen(case: str, dataset_name: str = "Dataset900_Elsewhere", content_hash: str = "") -> SeenImage:
    return SeenImage(
        dataset_name=dataset_name, case=case, channel=0, patient=case, content_hash=content_hash or f"hash of {case}"
    )


def metadata(family: str = PLAIN, images: tuple[SeenImage, ...] = (), **changes: Any) -> WeightsMetadata:
    domain = DomainPlan(
        dataset_name="Dataset900_Elsewhere",
        plans_name=PLANS[family],
        data_identifier=f"{PLANS[family]}_3d_fullres",
        modality="MR",
        groups=("MR brain", "MR"),
        num_images=2,
        spacing=(1.0, 1.0, 1.0),
        patch_size=(16, 16, 16),
        architecture=architecture(family, **SOURCE),
    )
    values: dict[str, Any] = {
        "family": family,
        "dim": 3,
        "domains": (domain,),
        "pretraining": pretraining_plan(load_preset("cpu")),
        "images": images or (seen("a"), seen("b")),
        "curves": {"train_loss": [2.0, 1.5, 1.0, 0.5]},
        "versions": {"hssl_nnunet": "0.1.0", "torch": "2.15.0"},
        "seed": 7,
        "created": "2026-11-23T08:00:00+00:00",
        "licence": "CC-BY-4.0",
        "citation": "",
        "epochs_done": 4,
    }
    return WeightsMetadata(**(values | changes))


def write_weights(path: Path, family: str = PLAIN, images: tuple[SeenImage, ...] = ()) -> Path:
    save_weights(path, shared_tensors(family), {"image.weight": torch.ones(2, 3)}, metadata(family, images))
    return path
