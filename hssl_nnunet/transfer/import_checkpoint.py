"""Weights of a checkpoint of nnU-Net or nnssl as a weights file of ours: a warm start, or a rival in a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from hssl_nnunet.corpus.modality import modality_of
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.networks.projection import is_segmentation, is_stem, role_of
from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.paths import WEIGHTS_FILE
from hssl_nnunet.plan_schema import DomainPlan
from hssl_nnunet.remedies import seed_command
from hssl_nnunet.transfer.checkpoints import load_checkpoint
from hssl_nnunet.transfer.weights_file import (
    WeightsMetadata,
    file_sha256,
    is_safetensors,
    read_metadata,
    save_weights,
)
from hssl_nnunet.versions import versions

UNKNOWN = "unknown"
NETWORKS = "dynamic_network_architectures.architectures.unet."
# nnssl names this network instead of describing it
RES_ENC_L = {
    "n_stages": 6,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 6,
    "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "n_conv_per_stage_decoder": [1] * 5,
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
PRESETS = {"ResEncL": ("ResidualEncoderUNet", RES_ENC_L)}
IMPORTED_AT_RUNTIME = ["conv_op", "norm_op", "dropout_op", "nonlin"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What was taken from a checkpoint.

    Attributes:
        taken: parameters of encoder and decoder.
        absent: parameters of the decoder that the checkpoint lacks.
        ignored: tensors of the checkpoint that are no part of a U-Net without its segmentation layers.
    """

    taken: tuple[str, ...]
    absent: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """What a checkpoint says about itself."""

    domain: DomainPlan
    channels: int
    trainer: str
    epochs: int
    citation: str = ""
    masks: int = 0  # further channels of the stem, in which a cascade's second stage reads the first one's segmentation


def import_checkpoint(path: str | Path, output: str | Path) -> Imported:
    """Write the weights of a checkpoint as a weights file, with which `hssl seed` seeds any target.

    The checkpoint is one of nnU-Net's (`checkpoint_final.pth` of any trainer whose network is the plan's), or one of
    nnssl's that holds its `nnssl_adaptation_plan`, as the published ones of OpenMind do. The encoder must be complete;
    a decoder is taken if it is there. A stem keeps the channels of its images: it is adapted to each target.

    Args:
        path: the checkpoint; nothing in it is executed.
        output: the weights file, `.safetensors`; nothing that is there is replaced.

    Returns:
        What was taken and what was not.

    Raises:
        HSSLError: missing, damaged or unknown checkpoint; a network that is no U-Net of nnU-Net's; tensors that are not
            those of the network it describes; an output of another ending, or one that is there.
    """
    path = Path(path)
    _check_output(Path(output))
    _refuse_weights(path)
    content = load_checkpoint(path)
    source, topology = _read(content, path)
    tensors, imported = _by_role(content["network_weights"], topology, source, path)
    metadata = WeightsMetadata(
        family=topology.family,
        dim=topology.dim,
        domains=(source.domain,),
        pretraining=None,
        images=None,
        curves={},
        versions=versions(),
        seed=None,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        licence="",
        citation=source.citation,
        epochs_done=source.epochs,
        origin=f"{path.name}, {source.trainer}, sha256 {file_sha256(path)}",
    )
    save_weights(output, tensors, {}, metadata)
    return imported


def _check_output(output: Path) -> None:
    if output.suffix != ".safetensors":
        raise HSSLError(f"-o {output}: a weights file ends in `.safetensors`, for example `-o rival.safetensors`.")
    for path in (output, output.with_suffix(".json")):  # the second takes the readable copy of the metadata
        if path.exists():
            raise HSSLError(f"{path} is there already, and is not replaced. Give another name with `-o`, or remove it.")


def _refuse_weights(path: Path) -> None:
    if path.is_file() and is_safetensors(path):
        read_metadata(path)
        command = seed_command("DATASET", path)
        raise HSSLError(f"{path} is a weights file already. Nothing is to be imported: run `{command}`.")


def _refuse_pretraining(plans: Mapping[str, Any], path: Path) -> None:
    """A pretraining's checkpoint holds weights that all its domains share; they are a file of their own."""
    if plans.get("hssl", {}).get("role") != "corpus":
        return
    weights = path.parent / WEIGHTS_FILE
    remedy = f"seed from {weights}: run `{seed_command('DATASET', weights)}`"
    if not weights.is_file():
        remedy = f"its weights file is written when it ends: run `hssl pretrain CORPUS --c`, then seed from {weights}"
    raise HSSLError(f"{path} is the checkpoint of a pretraining of ours, which needs no import; {remedy}.")


def _read(content: Mapping[str, Any], path: Path) -> tuple[_Source, Topology]:
    if not isinstance(content, Mapping) or "network_weights" not in content:
        raise HSSLError(
            f"{path} holds no `network_weights`, hence is no checkpoint of nnU-Net or nnssl. Give a file like "
            "`checkpoint_final.pth`, as their trainers write it."
        )
    try:
        source = None
        if "nnssl_adaptation_plan" in content:
            source = _of_nnssl(content)
        elif "plans" in content.get("init_args", {}):
            _refuse_pretraining(content["init_args"]["plans"], path)
            source = _of_nnunet(content)
        if source is not None:
            return source, Topology.from_architecture(source.domain.architecture, str(path))
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise HSSLError(f"{path} does not describe its network as nnU-Net or nnssl do: {error!r}.") from None
    raise HSSLError(
        f"{path} does not say which network it holds: expected `init_args` with `plans`, as nnU-Net writes it, or "
        "`nnssl_adaptation_plan`. Files for `-pretrained_weights` do not: give the checkpoint they were made from."
    )


def _of_nnunet(content: Mapping[str, Any]) -> _Source:
    arguments = content["init_args"]
    plans, dataset = arguments["plans"], arguments["dataset_json"]
    manager = PlansManager(plans)
    configuration = manager.get_configuration(arguments["configuration"])
    channels = dataset.get("channel_names", dataset.get("modality"))
    modality = modality_of(str(next(iter(channels.values()))))
    domain = DomainPlan(
        dataset_name=plans["dataset_name"],
        plans_name=plans["plans_name"],
        data_identifier=configuration.data_identifier,
        modality=modality,
        groups=(modality,),
        num_images=int(dataset["numTraining"]) * len(channels),
        spacing=tuple(map(float, configuration.spacing)),
        patch_size=tuple(map(int, configuration.patch_size)),
        architecture=configuration.configuration["architecture"],
    )
    labels = manager.get_label_manager(dataset).foreground_labels
    return _Source(
        domain=domain,
        channels=len(channels),
        trainer=content["trainer_name"],
        epochs=int(content.get("current_epoch", 0)),
        masks=0 if configuration.previous_stage_name is None else len(labels),
    )


def _of_nnssl(content: Mapping[str, Any]) -> _Source:
    adaptation = content["nnssl_adaptation_plan"]
    plan = adaptation["pretrain_plan"]
    (configuration,) = plan["configurations"].values()
    domain = DomainPlan(
        dataset_name=plan["dataset_name"],
        plans_name=plan["plans_name"],
        data_identifier=configuration["data_identifier"],
        modality=UNKNOWN,
        groups=(UNKNOWN,),
        num_images=0,
        spacing=tuple(map(float, configuration["spacing"] or ())),
        patch_size=tuple(map(int, configuration["patch_size"])),
        architecture=_architecture(adaptation["architecture_plans"]),
    )
    return _Source(
        domain=domain,
        channels=int(adaptation["pretrain_num_input_channels"]),
        trainer=str(content.get("trainer_name", "nnssl")),
        epochs=int(content.get("current_epoch", 0)),
        citation=" ".join(text for entry in content.get("citations", ()) for text in entry.get("apa_citations", ())),
    )


def _architecture(described: Mapping[str, Any]) -> dict[str, Any]:
    """A plan's `architecture` entry from nnssl's `architecture_plans`."""
    name, keywords = described["arch_class_name"], described["arch_kwargs"]
    needs_import = described.get("arch_kwargs_requiring_import") or IMPORTED_AT_RUNTIME
    if name in PRESETS and not keywords:
        name, keywords = PRESETS[name]
    elif not keywords:
        raise HSSLError(f"nnssl's network {name} is no U-Net of nnU-Net's. Known: {', '.join(PRESETS)}.")
    return {
        "network_class_name": NETWORKS + str(name).rsplit(".", 1)[-1],
        "arch_kwargs": dict(keywords),
        "_kw_requires_import": list(needs_import),
    }


def _by_role(
    weights: Mapping[str, Tensor], topology: Topology, source: _Source, path: Path
) -> tuple[dict[str, Tensor], Imported]:
    """The checkpoint's tensors by role; kernels with three axes, the stem's of images alone."""
    tensors: dict[str, Tensor] = {}
    taken, absent, known = list[str](), list[str](), set[str]()
    for names, parameter in _parameters(topology.build(source.channels + source.masks, device="meta")):
        role = role_of(names[0], topology.n_stages)
        tensor = next((weights[name] for name in names if name in weights), None)
        if is_segmentation(role):
            continue
        known.update(names)
        if tensor is None:
            absent.append(names[0])
        elif tensor.shape != parameter.shape:
            raise HSSLError(
                f"{path}: {names[0]} has shape {tuple(tensor.shape)}, the network it describes has "
                f"{tuple(parameter.shape)}. Only networks as the plan has them can be imported."
            )
        else:
            if is_stem(role):
                tensor = tensor[:, : source.channels]
            taken.append(names[0])
            tensors[role] = tensor.unsqueeze(2) if tensor.ndim == 4 else tensor
    if lacking := [name for name in absent if name.startswith("encoder.")]:
        raise HSSLError(
            f"{path} lacks {len(lacking)} tensors of the encoder that it describes, the first {lacking[0]}. Only "
            "networks as the plan has them can be imported."
        )
    ignored = tuple(name for name in weights if name not in known)
    return tensors, Imported(taken=tuple(taken), absent=tuple(absent), ignored=ignored)


def _parameters(network: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Every parameter of a network with all its names: nnU-Net registers a convolution and the encoder twice."""
    named: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        named.setdefault(id(parameter), ([], parameter))[0].append(name)
    return list(named.values())
