"""A seeded network in nnssl's file format, which nnU-Net's own trainers for nnssl's checkpoints take."""

from __future__ import annotations

from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.transfer.weights_file import WeightsMetadata

CONFIGURATION = "3d_fullres"  # the only one that nnU-Net's loaders of this format know
OF_PLAN = (
    "plans_name",
    "original_median_spacing_after_transp",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "experiment_planner_used",
)
NOT_OF_PREPROCESSING = ("architecture", "batch_size", "batch_dice", "median_image_size_in_voxels", "inherits_from")


def nnssl_checkpoint(
    network: nn.Module,
    topology: Topology,
    plans: dict[str, Any],
    metadata: WeightsMetadata,
) -> dict[str, Any]:
    """A seeded network as a checkpoint of nnssl's, without segmentation layers.

    The weights are in the form of the target's plan already: kernels, depth and channels fit, so that nnU-Net's
    `PretrainedTrainer` and `DynamicPretrainedTrainer`, which refuse a `PlainConvUNet` of several channels or flat
    kernels otherwise, copy them as they are. Both take the encoder alone.

    Args:
        network: the target's network, seeded.
        topology: its topology.
        plans: content of the target's plans file.
        metadata: of the weights file.

    Returns:
        Tensors, numbers and text, as `torch.save` and `torch.load(weights_only=True)` take them.
    """
    configuration = PlansManager(plans).get_configuration(CONFIGURATION).configuration
    architecture, patch_size = configuration["architecture"], list(configuration["patch_size"])
    preprocessing = {k: v for k, v in configuration.items() if k not in NOT_OF_PREPROCESSING}
    weights = {name: tensor for name, tensor in network.state_dict().items() if ".seg_layers." not in name}
    keys_to_in_proj = list(network.keys_to_in_proj)  # type: ignore[arg-type]
    adaptation = {
        "architecture_plans": {
            "arch_class_name": topology.family,
            "arch_kwargs": architecture["arch_kwargs"],
            "arch_kwargs_requiring_import": list(architecture["_kw_requires_import"]),
        },
        "architecture_kwargs": architecture["arch_kwargs"],  # where the dynamic trainer looks for kernels and depth
        "pretrain_plan": {
            "dataset_name": "+".join(domain.dataset_name for domain in metadata.domains),
            **{key: plans[key] for key in OF_PLAN},
            "configurations": {CONFIGURATION: preprocessing},
        },
        "pretrain_num_input_channels": weights[f"{keys_to_in_proj[0]}.weight"].shape[1],
        "pretrain_patch_size": patch_size,
        "recommended_downstream_patchsize": patch_size,
        "key_to_encoder": network.key_to_encoder,
        "key_to_stem": network.key_to_stem,
        "keys_to_in_proj": keys_to_in_proj,
        "key_to_lpe": None,
    }
    citation = {"type": "Pretraining", "name": "hssl_nnunet", "apa_citations": [metadata.citation]}
    return {
        "network_weights": weights,
        "nnssl_adaptation_plan": adaptation,
        "citations": [citation] if metadata.citation else [],
        "trainer_name": "nnUNetTrainerHSSLPretrain",
        "current_epoch": metadata.epochs_done,
    }
