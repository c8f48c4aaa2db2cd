"""What of the pretrained weights a target takes: all that fits, the encoder alone, or what stock nnU-Net could load.

`all` is this project's way. The other two are what others do, kept as plan values so that a benchmark can compare:
encoder-only transfer (nnssl and nnU-Net's `PretrainedTrainer`), and copying tensors of equal name and shape, the most
that stock `-pretrained_weights` could do if it skipped what does not match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from hssl_nnunet.networks.projection import Entry, is_segmentation, is_stem, plan_projection, project
from hssl_nnunet.networks.topology import Topology

Transfer = Literal["all", "encoder", "equal"]


def selected_state(
    tensors: Mapping[str, Tensor],
    network: nn.Module,
    topology: Topology,
    transfer: Transfer = "all",
    domains: Sequence[Topology] = (),
) -> tuple[dict[str, Tensor], list[Entry]]:
    """Parameters of a target that come from shared tensors.

    Args:
        tensors: role -> shared tensor, as `load_weights` returns them.
        network: a stock network of this topology.
        topology: the network's topology.
        transfer: what is taken.
        domains: topologies of the pretraining's domains; only `equal` needs them.

    Returns:
        Parameter name -> tensor for what is taken, and one entry for every parameter of the network.
    """
    if transfer == "equal":
        return _equal_state(tensors, network, topology, domains)
    entries = plan_projection({role: tuple(t.shape) for role, t in tensors.items()}, network, topology)
    if transfer == "encoder":
        entries = [
            e if e.part == "encoder" or e.status == "fresh" else replace(e, status="fresh", how="transfer: encoder")
            for e in entries
        ]
    return project(tensors, entries), entries


def _equal_state(
    tensors: Mapping[str, Tensor], network: nn.Module, topology: Topology, domains: Sequence[Topology]
) -> tuple[dict[str, Tensor], list[Entry]]:
    """Tensors of equal name and shape in the deepest domain's own network: names count from the bottleneck."""
    source = max(domains, key=lambda t: t.n_stages)
    channels = next((t.shape[1] for role, t in tensors.items() if is_stem(role)), 1)  # imported stems may have several
    skeleton = source.build(channels, device="meta")
    there = project(tensors, plan_projection({r: tuple(t.shape) for r, t in tensors.items()}, skeleton, source))
    entries, state = [], {}
    for entry in plan_projection({}, network, topology):
        tensor = there.get(entry.name)
        if tensor is not None and tuple(tensor.shape) == entry.shape:
            state[entry.name] = tensor
            entries.append(replace(entry, status="exact", how=""))
        elif is_segmentation(entry.role):
            entries.append(entry)
        else:
            why = "no such name in the source" if tensor is None else f"shape {tuple(tensor.shape)} in the source"
            entries.append(replace(entry, how=f"transfer: equal; {why}"))
    return state, entries
