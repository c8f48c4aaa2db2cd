"""The invariant of the method: a seeded network computes the features of the pretraining network, at every level."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fixture_topologies import (
    CONFIGURATIONS,
    NARROW,
    PLANNERS,
    corpus,
    distinct_targets,
    num_channels,
    random_tensors,
    record_features,
    smallest_image,
    topology,
)
from reference_unet import reference_features
from torch import Tensor

from hssl_nnunet.networks.domain_network import DomainNetwork
from hssl_nnunet.networks.projection import plan_projection, project
from hssl_nnunet.networks.shared_weights import SharedWeights
from hssl_nnunet.networks.topology import Topology

TOLERANCE = 1e-5


def seeded_features(tensors: dict[str, Tensor], of: Topology, image: Tensor) -> dict[str, Tensor]:
    """Features of a stock network after `load_state_dict` of the projected tensors."""
    network = of.build(image.shape[1], num_output_channels=3, deep_supervision=True).to(image.dtype)
    entries = plan_projection({role: t.shape for role, t in tensors.items()}, network, of)
    result = network.load_state_dict(project(tensors, entries), strict=False)
    assert not result.unexpected_keys
    features = record_features(network)
    with torch.no_grad():
        network(image)
    return features


def pretraining_features(tensors: dict[str, Tensor], of: Topology, image: Tensor) -> dict[str, Tensor]:
    """Features in pretraining: the domain's skeleton, called with the projected tensors."""
    shapes = {role: t.shape for role, t in tensors.items()}
    domain = DomainNetwork(of, shapes, decoded_views=1, reconstructs=True, compiled=False)
    features = record_features(domain.skeleton)
    domain.run(project(tensors, domain.entries), image, len(image))
    return features


def assert_close(features: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert features.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(
            features[key], expected[key], rtol=0, atol=TOLERANCE, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize(("task", "planner", "configuration"), distinct_targets())
def test_seeded_network_computes_the_features_of_pretraining(task: str, planner: str, configuration: str) -> None:
    of = topology(task, planner, configuration, NARROW)
    tensors = random_tensors(corpus(planner, configuration))
    image = smallest_image(of, num_channels(task))
    seeded = seeded_features(tensors, of, image)
    assert set(seeded) == {f"encoder.{i}" for i in range(of.n_stages)} | {
        f"decoder.{i}" for i in range(of.n_stages - 1)
    }
    assert_close(seeded, pretraining_features(tensors, of, image.mean(1, keepdim=True)))
    assert_close(seeded, reference_features(tensors, of, image))


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_also_in_single_precision(planner: str, configuration: str) -> None:
    of = topology("Task05_Prostate", planner, configuration, NARROW)
    tensors = random_tensors(corpus(planner, configuration), dtype=torch.float32)
    image = smallest_image(of, dtype=torch.float32)
    assert_close(seeded_features(tensors, of, image), pretraining_features(tensors, of, image))


@pytest.mark.parametrize("planner", PLANNERS)
def test_2d_target_of_a_3d_corpus_computes_the_features_down_to_the_first_other_width(planner: str) -> None:
    of = topology("Task07_Pancreas", planner, "2d", NARROW)  # as deep as 512 features, the corpus has 320
    tensors = random_tensors(corpus(planner, "3d_fullres"))
    image = smallest_image(of)
    upper = replace(of, strides=of.strides[:4], kernel_sizes=of.kernel_sizes[:4], features=of.features[:4])
    expected = {k: v for k, v in reference_features(tensors, upper, image).items() if k.startswith("encoder.")}
    seeded = seeded_features(tensors, of, image)
    assert_close({key: seeded[key] for key in expected}, expected)


def test_every_number_of_channels_sees_their_mean() -> None:
    of = topology("Task54_CineLV", narrow=NARROW)
    tensors = random_tensors(corpus("ExperimentPlanner"))
    image = smallest_image(of)
    one = seeded_features(tensors, of, image)
    for channels in (2, 4):
        assert_close(seeded_features(tensors, of, image.expand(-1, channels, -1, -1, -1)), one)


@pytest.mark.parametrize("planner", ["ExperimentPlanner", "nnUNetPlannerResEncM"])
def test_every_alias_of_a_parameter_is_seeded(planner: str) -> None:
    of = topology("Task05_Prostate", planner, narrow=NARROW)
    tensors = random_tensors(corpus(planner), dtype=torch.float32)
    network = of.build()
    projected = project(tensors, plan_projection(corpus(planner).shapes(), network, of))
    network.load_state_dict(projected, strict=False)
    by_pointer = {parameter.data_ptr(): name for name, parameter in network.named_parameters()}
    state = network.state_dict()
    assert len(state) > len(by_pointer)  # nnU-Net registers its layers under several names
    for alias, tensor in state.items():
        name = by_pointer[tensor.data_ptr()]
        if name in projected:
            assert torch.equal(tensor, projected[name]), alias


def test_fresh_parameters_keep_their_start() -> None:
    of, shallow = topology("Task10_Colon", narrow=NARROW), topology("Task04_Hippocampus", narrow=NARROW)
    shared, network = SharedWeights([shallow]), of.build()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    entries = plan_projection(shared.shapes(), network, of)
    network.load_state_dict(project(random_tensors(shared, dtype=torch.float32), entries), strict=False)
    changed = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {entry.name for entry in entries if entry.status != "fresh"}
    assert {"encoder.stages.3.0.convs.0.conv.weight", "decoder.transpconvs.4.weight"} <= changed
    assert {"encoder.stages.4.0.convs.0.conv.weight", "decoder.transpconvs.0.weight"}.isdisjoint(changed)
