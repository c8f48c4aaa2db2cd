"""Put pretrained weights into a target: into its network, and into a plans file beside its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import write_json
from hssl_nnunet.networks.projection import Entry
from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.nnunet_plans import read_plans
from hssl_nnunet.paths import dataset_name, preprocessed_dir
from hssl_nnunet.plan_schema import DEFAULT_PLANS, SEEDED_SUFFIX, TargetBlock, finetuning_plan, preset_of_plans
from hssl_nnunet.plan_values import FinetuningPlan
from hssl_nnunet.preflight import check_labelled, read_dataset
from hssl_nnunet.remedies import DEFAULT_CONFIGURATION, plan_command, preprocess_command, preset_name, seed_command
from hssl_nnunet.transfer.checkpoints import save_checkpoint
from hssl_nnunet.transfer.leakage import leakage_notes
from hssl_nnunet.transfer.nnssl_format import CONFIGURATION as OF_NNSSL
from hssl_nnunet.transfer.nnssl_format import nnssl_checkpoint
from hssl_nnunet.transfer.report import TransferReport
from hssl_nnunet.transfer.selection import Transfer, selected_state
from hssl_nnunet.transfer.weights_file import WeightsMetadata, file_sha256, load_weights, read_metadata
from hssl_nnunet.typed_json import differences, parse
from hssl_nnunet.typed_json import to_json as plan_to_json

MOST_NAMED = 5  # differences that a note names


@dataclass(frozen=True, slots=True)
class _Before:
    """What we read of the `hssl` block of seeded plans that are to be replaced; older ones may lack values."""

    weights_sha256: str | None = None
    finetuning: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """A target's preprocessed folder and what it plans."""

    folder: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]

    @property
    def plans_file(self) -> Path:
        return self.folder / f"{self.plans['plans_name']}.json"


def target_network(
    plans: dict[str, Any],
    dataset_json: dict[str, Any],
    configuration: str,
    source: str = "the plans",
    device: str | torch.device = "cpu",
) -> tuple[nn.Module, Topology]:
    """The network that stock nnU-Net trains for a configuration, freshly initialised, and its topology.

    Args:
        plans: content of a plans file.
        dataset_json: content of the target's `dataset.json`: image channels and labels.
        configuration: nnU-Net's configuration.
        source: where the plans come from, for errors.
        device: `"meta"` gives a skeleton without storage.

    Raises:
        HSSLError: the plans name a network that shared weights are not defined for.
    """
    manager = PlansManager(plans)
    resolved = manager.get_configuration(configuration)
    topology = Topology.from_architecture(resolved.configuration["architecture"], f"{configuration} of {source}")
    channels = determine_num_input_channels(manager, resolved, dataset_json)
    classes = manager.get_label_manager(dataset_json).num_segmentation_heads
    return topology.build(channels, classes, deep_supervision=True, device=device), topology


@torch.no_grad()
def load_into(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    topology: Topology,
    transfer: Transfer = "all",
    domains: Sequence[Topology] = (),
) -> list[Entry]:
    """Copy projected weights into a network, in place; what is fresh, as every segmentation layer, stays untouched.

    nnU-Net registers a parameter under several names (`conv` and `all_modules.0`, `encoder` and `decoder.encoder`);
    all of them see the copy, for they are one tensor.

    Args:
        network: a stock network, neither compiled nor wrapped; any device and dtype.
        tensors: role -> shared tensor, as `load_weights` returns them.
        topology: the network's topology.
        transfer: what is taken, see `selection`.
        domains: topologies of the pretraining's domains; only `equal` needs them.

    Returns:
        One entry for every parameter of the network.
    """
    state, entries = selected_state(tensors, network, topology, transfer, domains)
    parameters = dict(network.named_parameters())
    for name, tensor in state.items():
        parameters[name].copy_(tensor)
    return entries


def seed_target(
    dataset: str | int,
    weights: str | Path,
    plans_name: str = DEFAULT_PLANS,
    configurations: Sequence[str] = (DEFAULT_CONFIGURATION,),
    pth: str | Path | None = None,
    nnssl: str | Path | None = None,
    finetuning_overrides: Mapping[str, Any] | None = None,
) -> dict[str, TransferReport]:
    """Report what a target takes from a weights file, and write `<plans_name>_HSSL.json` beside its plans.

    The seeded plans differ from the target's own only in `plans_name` and the `hssl` block, hence use the same
    preprocessed images. A seeded plans file that is there is replaced; its `finetuning` values, which somebody may have
    edited, stay. Notes of each report name those that are not the preset's, and what of the file does not stay.

    Args:
        dataset: dataset name or id of the target.
        weights: the weights file.
        plans_name: plans of the target, as `hssl plan_and_preprocess` wrote them.
        configurations: configurations to report on, each preprocessed.
        pth: a file to write for stock `nnUNetv2_train -pretrained_weights`; needs exactly one configuration.
        nnssl: a file to write in nnssl's format, for nnU-Net's `PretrainedTrainer`; needs `3d_fullres` alone.
        finetuning_overrides: fine-tuning values that differ from the preset's; None = those of the seeded plans that
            are there, if any.

    Returns:
        Configuration -> report.

    Raises:
        HSSLError: missing dataset, plans, configuration or preprocessed images; a dataset without masks, or a corpus;
            weights of another network family; unreadable weights; `pth` or `nnssl` exists already.
    """
    tensors, metadata = load_weights(weights)
    target = _read_target(dataset, plans_name)
    _check_files(configurations, weights, pth, nnssl)
    networks = {name: _network(target, name, metadata, weights) for name in configurations}
    sha256, seeded = file_sha256(weights), seeded_plans_file(dataset, plans_name)
    finetuning, replaced = _finetuning(target, seeded, finetuning_overrides, sha256)
    notes = (*leakage_notes(metadata, target.folder.name, target.folder), *replaced)
    domains = [Topology.from_architecture(d.architecture, f"{d.dataset_name} in {weights}") for d in metadata.domains]
    reports = {
        name: TransferReport(
            dataset=target.folder.name,
            configuration=name,
            entries=tuple(load_into(network, tensors, topology, finetuning.transfer, domains)),
            notes=notes,
        )
        for name, (network, topology) in networks.items()
    }
    network, topology = networks[configurations[0]]
    if pth is not None:
        save_checkpoint(pth, {"network_weights": network.state_dict()})
    if nnssl is not None:
        save_checkpoint(nnssl, nnssl_checkpoint(network, topology, target.plans, metadata))
    block = TargetBlock(weights=str(Path(weights).resolve()), weights_sha256=sha256, finetuning=finetuning)
    write_json(seeded, {**target.plans, "plans_name": seeded.stem, "hssl": plan_to_json(block)})
    return reports


def plans_to_seed(dataset: str | int, weights: str | Path) -> str:
    """`nnUNetPlans` where the target has them, else those that the weights were pretrained on, if it has these.

    Args:
        dataset: dataset name or id of the target.
        weights: the weights file.

    Raises:
        HSSLError: the dataset is missing, or the weights cannot be read.
    """
    folder = preprocessed_dir() / dataset_name(dataset)
    names = (DEFAULT_PLANS, *(domain.plans_name for domain in read_metadata(weights).domains))
    return next((name for name in names if (folder / f"{name}.json").is_file()), DEFAULT_PLANS)


def seeded_plans_file(dataset: str | int, plans_name: str = DEFAULT_PLANS) -> Path:
    """The plans file that seeding writes.

    Args:
        dataset: dataset name or id of the target.
        plans_name: plans of the target, seeded or not.
    """
    return preprocessed_dir() / dataset_name(dataset) / f"{plans_name.removesuffix(SEEDED_SUFFIX)}{SEEDED_SUFFIX}.json"


def _read_target(dataset: str | int, plans_name: str) -> _Target:
    name, own = dataset_name(dataset), plans_name.removesuffix(SEEDED_SUFFIX)
    folder = preprocessed_dir() / name
    remedy = f"Run `{plan_command(name, own)}` first."
    plans_file = folder / f"{own}.json"
    if folder.is_dir() and not plans_file.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.json") if "lans" in p.stem)) or "none"
        remedy = f"Plans there: {there}. Name one with `-p`, or run `{plan_command(name, own)}`."
    plans = read_plans(plans_file, remedy)
    _check_own_plans(plans, plans_file)
    about, dataset_json = read_dataset(folder)
    if len(about.labels) < 2:
        raise HSSLError(f"{name} has no labels to segment ({folder / 'dataset.json'}). Seed a dataset that has masks.")
    return _Target(folder=folder, plans=plans, dataset_json=dataset_json)


def _check_own_plans(plans: dict[str, Any], path: Path) -> None:
    if (plans.get("hssl") or {}).get("role") == "corpus":
        raise HSSLError(
            f"{path} are the plans of a corpus, which weights are learned from. Seed a dataset that has masks: "
            "`hssl seed -d TARGET -w hssl.safetensors`."
        )
    if plans["plans_name"] != path.stem:
        raise HSSLError(
            f"{path} calls itself `{plans['plans_name']}`, as a copy of other plans does: what is seeded from it would "
            f'replace theirs. Set `"plans_name": "{path.stem}"` in it.'
        )


def _check_files(asked: Sequence[str], weights: str | Path, pth: str | Path | None, nnssl: str | Path | None) -> None:
    files = [Path(file).resolve() for file in (weights, pth, nnssl) if file is not None]
    if len(set(files)) < len(files):
        raise HSSLError(
            f"--pth and --nnssl need files of their own beside the weights, got {', '.join(map(str, files))}."
        )
    for file in files[1:]:
        if file.exists():
            raise HSSLError(f"{file} exists already. Remove it, or name another file with --pth or --nnssl.")
    got = f"got the configurations {', '.join(asked)}"
    if pth is not None and len(asked) != 1:
        raise HSSLError(f"A .pth file holds one network, {got}. Add `-c {asked[0]}`.")
    if nnssl is not None and list(asked) != [OF_NNSSL]:
        raise HSSLError(f"nnU-Net reads nnssl's format for {OF_NNSSL} alone, {got}. Add `-c {OF_NNSSL}`.")


def _network(
    target: _Target, configuration: str, metadata: WeightsMetadata, weights: str | Path
) -> tuple[nn.Module, Topology]:
    """The network of a configuration that these weights can seed, and its topology."""
    check_labelled(target.folder, target.plans, configuration)
    plans_file = str(target.plans_file)
    network, topology = target_network(target.plans, target.dataset_json, configuration, plans_file)
    if metadata.family != topology.family:
        of_family = "nnUNetResEncUNetLPlans" if metadata.family == "ResidualEncoderUNet" else DEFAULT_PLANS
        theirs = metadata.domains[0].plans_name  # of imported weights no preset's
        plans_name = theirs if preset_name(theirs) else of_family
        raise HSSLError(
            f"The weights were pretrained with a {metadata.family}, {plans_file} plans a {topology.family}. Run "
            f"`{preprocess_command(target.folder.name, plans_name, configuration)}`, then "
            f"`{seed_command(target.folder.name, weights, plans_name, configuration)}`."
        )
    return network, topology


def _finetuning(
    target: _Target, path: Path, overrides: Mapping[str, Any] | None, weights_sha256: str
) -> tuple[FinetuningPlan, list[str]]:
    """The fine-tuning to write; notes on what of the seeded plans that are at `path` is kept, and what is not."""
    preset = preset_of_plans(target.plans)
    planned = finetuning_plan(preset, **(overrides or {}))
    if not path.is_file():
        return planned, []
    try:
        there = read_plans(path)
        before = parse(_Before, there.get("hssl") or {}, f"the `hssl` block of {path}")
        kept = planned if overrides is not None else finetuning_plan(preset, path, **before.finetuning)
    except HSSLError as error:
        raise HSSLError(f"{error}\nRepair it, or remove it to seed with the preset's values.") from None
    notes = []
    if kept != planned:
        notes.append(f"kept the values of {path} that are not the preset's: {_told(kept, planned)}.")
    if before.weights_sha256 not in (None, weights_sha256):
        notes.append(
            f"{path} named weights of sha256 {str(before.weights_sha256)[:12]}... before: folds that were trained with "
            "those are another model than folds to come."
        )
    seeded, own = ({k: v for k, v in p.items() if k not in ("plans_name", "hssl")} for p in (there, target.plans))
    if lost := differences("plans", seeded, own):
        more = f"; and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
        notes.append(f"the target's own plans replace what {path} had: {'; '.join(lost[:MOST_NAMED])}{more}.")
    return kept, notes


def _told(kept: FinetuningPlan, preset: FinetuningPlan) -> str:
    ours, theirs = plan_to_json(kept), plan_to_json(preset)
    return ", ".join(f"{k} {json.dumps(ours[k])} (preset: {json.dumps(v)})" for k, v in theirs.items() if ours[k] != v)
