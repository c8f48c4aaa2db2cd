"""Weights that a pretraining goes on from: what of them a corpus takes, and plans of the corpus that name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import write_json
from hssl_nnunet.networks.projection import Entry, plan_start, project
from hssl_nnunet.networks.shared_weights import SharedWeights
from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.nnunet_plans import read_plans
from hssl_nnunet.paths import preprocessed_dir
from hssl_nnunet.plan_schema import CorpusBlock, corpus_block
from hssl_nnunet.preflight import check_weights_file
from hssl_nnunet.remedies import seed_command
from hssl_nnunet.transfer.report import TransferReport
from hssl_nnunet.transfer.weights_file import WeightsMetadata, file_sha256, load_weights


def seed_corpus(
    corpus: str, weights: str | Path, plans_name: str, configurations: Sequence[str] = ()
) -> TransferReport:
    """Report what a corpus takes from a weights file, and name that file in its plans: its pretraining goes on from it.

    Args:
        corpus: dataset name of the corpus.
        weights: the weights file.
        plans_name: plans of the corpus.
        configurations: those that the user named: none, or the corpus' own.

    Returns:
        One entry for each shared tensor of the corpus; its segmentation layer reconstructs.

    Raises:
        HSSLError: the weights are of another network family or cannot be read; the plans are none of a corpus, or
            lack one of the configurations.
    """
    path = preprocessed_dir() / corpus / f"{plans_name}.json"
    plans = read_plans(path)
    block, own = corpus_block(plans, path), next(iter(plans["configurations"]))
    if foreign := [name for name in configurations if name != own]:
        raise HSSLError(
            f"{corpus} is a corpus and is seeded whole: {path} has {own} alone, got -c {' '.join(foreign)}. Leave -c "
            f"out: `{seed_command(corpus, weights, plans_name)}`."
        )
    tensors, metadata = load_weights(weights)
    shared = SharedWeights(
        [Topology.from_architecture(d.architecture, f"{d.dataset_name} in {path}") for d in block.domains]
    )
    _check_family(metadata, shared, weights, path)
    plans["hssl"] |= {"weights": str(Path(weights).resolve()), "weights_sha256": file_sha256(weights)}
    write_json(path, plans)
    return TransferReport(dataset=corpus, configuration=own, entries=tuple(start_from(shared, tensors)))


def load_start(shared: SharedWeights, block: CorpusBlock, plans: Path) -> WeightsMetadata | None:
    """Copy the weights that the plans of a corpus name into shared weights, in place.

    Args:
        shared: those of the corpus; any device.
        block: that of the corpus' plans.
        plans: their file.

    Returns:
        What the file says of itself; None where the plans name none.

    Raises:
        HSSLError: the file is gone or another one now, or its weights are of another network family.
    """
    if block.weights is None:
        return None
    seeding = seed_command(plans.parent.name, block.weights, plans.stem)
    check_weights_file(block.weights, plans, seeding)
    tensors, metadata = load_weights(block.weights)
    if (found := file_sha256(block.weights)) != block.weights_sha256:
        raise HSSLError(
            f"{block.weights} has sha256 {found[:12]}..., {plans} expect {str(block.weights_sha256)[:12]}... Put the "
            f"file back, or run `{seeding}` again."
        )
    _check_family(metadata, shared, block.weights, plans)
    start_from(shared, tensors)
    return metadata


@torch.no_grad()
def start_from(shared: SharedWeights, tensors: Mapping[str, Tensor]) -> list[Entry]:
    """Copy what fits of some shared tensors into others, in place; the rest stays as it is.

    Args:
        shared: the weights to start.
        tensors: role -> tensor, as `load_weights` returns them.

    Returns:
        One entry for each tensor of `shared`.
    """
    entries = plan_start({role: tuple(tensor.shape) for role, tensor in tensors.items()}, shared.shapes())
    own = shared.tensors()
    for role, tensor in project(tensors, entries).items():
        own[role].copy_(tensor)
    return entries


def _check_family(metadata: WeightsMetadata, shared: SharedWeights, weights: str | Path, plans: Path) -> None:
    if metadata.family != shared.family:
        raise HSSLError(
            f"{weights} holds weights of a {metadata.family}, the domains of {plans} plan a {shared.family}. Name "
            "weights of that network, or plan the domains with the weights' preset and build the corpus again."
        )
