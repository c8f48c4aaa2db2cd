"""What a target takes of the weights: all, the encoder alone, or what stock nnU-Net could load."""

from __future__ import annotations

import pytest
import tiny_target as tiny
import torch

from hssl_nnunet.networks.projection import is_stem, role_of
from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.transfer.seeding import load_into
from hssl_nnunet.transfer.selection import selected_state


def topology(family: str, spec: dict) -> Topology:
    return Topology.from_architecture(tiny.architecture(family, **spec))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_encoder_alone(family: str) -> None:
    target = topology(family, tiny.TARGET)
    network, tensors = target.build(1, 3), tiny.shared_tensors(family)
    everything, _ = selected_state(tensors, network, target)
    state, entries = selected_state(tensors, network, target, "encoder")
    assert state.keys() == {name for name in everything if name.startswith("encoder.")} < everything.keys()
    assert all(torch.equal(tensor, everything[name]) for name, tensor in state.items())
    assert {e.name for e in entries if e.status != "fresh"} == state.keys()
    assert len(entries) == len(list(network.named_parameters()))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_equal_is_a_plain_comparison_of_state_dicts(family: str) -> None:
    source, target = topology(family, tiny.SOURCE), topology(family, tiny.TARGET)
    network, tensors = target.build(1, 3), tiny.shared_tensors(family)
    pretrained = source.build(1, 1)
    load_into(pretrained, tensors, source)
    there, wanted = dict(pretrained.named_parameters()), dict(network.named_parameters())
    expected = {n for n, p in there.items() if n in wanted and p.shape == wanted[n].shape and "seg_layers" not in n}

    state, entries = selected_state(tensors, network, target, "equal", [source])
    assert state.keys() == expected and expected
    assert all(torch.equal(tensor, there[name]) for name, tensor in state.items())
    assert {e.name: e.status for e in entries} == {n: "exact" if n in expected else "fresh" for n in wanted}
    stem = next(e for e in entries if e.shape[2:] == (1, 3, 3))  # flat in the target, cubic in the source
    assert stem.status == "fresh" and "in the source" in stem.how


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("channels", [1, 2])
def test_equal_takes_a_stem_of_as_many_channels_alone(family: str, channels: int) -> None:
    """Imported weights keep the channels that they were trained with."""
    source = topology(family, tiny.SOURCE)
    pretrained = source.build(2, 1)
    tensors = {role_of(name, source.n_stages): p.detach() for name, p in pretrained.named_parameters()}
    stem = next(role for role in tensors if is_stem(role))
    network = source.build(channels, 3)
    state, _ = selected_state(tensors, network, source, "equal", [source])
    taken = [tensor for name, tensor in state.items() if role_of(name, source.n_stages) == stem]
    assert len(taken) == (channels == 2) and all(torch.equal(t, tensors[stem]) for t in taken)


def test_equal_takes_a_decoder_of_another_depth_at_the_wrong_level() -> None:
    """Stock names count from the bottleneck: what this project's roles are for."""
    deep = {**tiny.TARGET, "kernels": [[3, 3, 3]] * 3, "features": [8, 8, 8]}
    shallow = {**tiny.SOURCE, "features": [8, 8]}
    source, target = topology(tiny.PLAIN, deep), topology(tiny.PLAIN, shallow)
    network = target.build(1, 3)
    pretrained = source.build(1, 1)
    tensors = {}
    for name, parameter in pretrained.named_parameters():
        tensors[role_of(name, 3)] = parameter.detach()
    name = "decoder.stages.0.convs.0.conv.weight"
    equal, _ = selected_state(tensors, network, target, "equal", [source])
    ours, _ = selected_state(tensors, network, target)
    assert torch.equal(equal[name], tensors["decoder.1.convs.0.conv.weight"])
    assert torch.equal(ours[name], tensors["decoder.0.convs.0.conv.weight"])
