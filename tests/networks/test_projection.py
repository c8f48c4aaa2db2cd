"""Which tensor goes where, and that nothing is left out unsaid."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from fixture_topologies import (
    NARROW,
    architecture,
    corpus,
    distinct_targets,
    num_channels,
    random_tensors,
    smallest_image,
    topology,
)

from hssl_nnunet.networks.projection import Entry, plan_projection, project
from hssl_nnunet.networks.shared_weights import SharedWeights
from hssl_nnunet.networks.topology import Topology

PLAIN, RESIDUAL = "ExperimentPlanner", "nnUNetPlannerResEncL"


def plan(shared: SharedWeights, of: Topology, channels: int = 1) -> list[Entry]:
    return plan_projection(shared.shapes(), of.build(channels, 3, deep_supervision=True, device="meta"), of)


def roles(entries: list[Entry], status: str) -> set[str]:
    return {entry.role for entry in entries if entry.status == status}


@pytest.mark.parametrize(("task", "planner", "configuration"), distinct_targets())
def test_nothing_is_left_out(task: str, planner: str, configuration: str) -> None:
    of, shared = topology(task, planner, configuration), corpus(planner, configuration, narrow=1)
    network = of.build(num_channels(task), 3, deep_supervision=True, device="meta")
    parameters = dict(network.named_parameters())
    entries = plan_projection(shared.shapes(), network, of)
    assert [entry.name for entry in entries] == list(parameters)
    assert len({entry.role for entry in entries}) == len(entries)
    count = Counter(entry.status for entry in entries)
    assert count["exact"] + count["adapted"] + count["fresh"] == len(parameters)
    # the corpus holds this very plan, so only the segmentation layers are without weights
    assert roles(entries, "fresh") == {
        f"decoder.{i}.segmentation.{w}" for i in range(of.n_stages - 1) for w in ("weight", "bias")
    }
    assert all(bool(entry.how) == (entry.status != "exact") for entry in entries)
    transferred = project(shared.tensors(), entries)
    assert {name: t.shape for name, t in transferred.items()} == {
        entry.name: parameters[entry.name].shape for entry in entries if entry.status != "fresh"
    }


@pytest.mark.parametrize(("task", "planner", "configuration"), distinct_targets())
def test_nothing_is_left_out_of_a_3d_corpus_of_one_shallow_task(task: str, planner: str, configuration: str) -> None:
    of, source = topology(task, planner, configuration), topology("Task04_Hippocampus", planner)
    with torch.device("meta"):
        entries = plan(SharedWeights([source]), of, num_channels(task))
    assert {entry.name for entry in entries} == {name for name, _ in of.build(device="meta").named_parameters()}
    for entry in entries:
        level = _level(entry.role)
        pretrained = level < source.n_stages - (entry.part == "decoder") and "segmentation" not in entry.role
        assert (entry.status != "fresh") == pretrained, entry
        assert entry.status == "exact" or entry.how
        assert len(entry.shape) < 4 or of.dim == 3 or entry.status != "exact"  # a 2D kernel never equals a 3D one


def _level(role: str) -> int:
    return 0 if role.startswith("encoder.stem") else int(role.split(".")[1])


@pytest.mark.parametrize("planner", [PLAIN, RESIDUAL])
def test_another_width_is_fresh_with_its_reason(planner: str) -> None:
    entry = architecture("Task04_Hippocampus", planner, "3d_fullres")
    entry["arch_kwargs"]["features_per_stage"][2] = 96  # 128 in the corpus
    entries = plan(corpus(planner, narrow=1), Topology.from_architecture(entry))
    fresh = {e.role: e.how for e in entries if e.status == "fresh" and "segmentation" not in e.role}
    assert fresh and all("width" in how and "pretrained with" in how for how in fresh.values())
    assert fresh["decoder.1.transpconv.weight"] == "width 96 -> 64, pretrained with 128 -> 64"
    assert "width 64 -> 96, pretrained with 64 -> 128" in fresh.values()  # what reads the level above
    reads_or_writes_level_2 = {
        e.role for e in entries if "segmentation" not in e.role and not {96, 2 * 96}.isdisjoint(e.shape[:2])
    }
    assert set(fresh) == reads_or_writes_level_2


def test_segmentation_layers_are_fresh_even_where_they_would_fit() -> None:
    """Pretraining's level 0 layer reconstructs an image; a target with one output has a layer of the same shape."""
    shared, of = corpus(PLAIN, narrow=1), topology("Task04_Hippocampus")
    network = of.build(device="meta")
    role = "decoder.0.segmentation.weight"
    (target,) = (e for e in plan_projection(shared.shapes(), network, of) if e.role == role)
    (skeleton,) = (e for e in plan_projection(shared.shapes(), network, of, segmentation=True) if e.role == role)
    assert target.shape == skeleton.shape == shared.shapes()[role]
    assert (target.status, skeleton.status) == ("fresh", "exact")


def test_entries_name_the_adaptation() -> None:
    entries = {e.role: e for e in plan(corpus(PLAIN, narrow=1), topology("Task05_Prostate"), channels=2)}
    stem = entries["encoder.0.0.convs.0.conv.weight"]
    assert stem.status == "adapted" and "3x3x3 -> 1x3x3" in stem.how and "repeated 2 times" in stem.how
    assert entries["encoder.2.0.convs.0.conv.weight"].status == "exact"
    assert "2x2x2 -> 1x2x2" in entries["decoder.0.transpconv.weight"].how
    assert "mean" in entries["decoder.0.transpconv.weight"].how


def test_parts_of_the_u_net() -> None:
    for planner in (PLAIN, RESIDUAL):
        entries = plan(corpus(planner, narrow=1), topology("Task06_Lung", planner))
        assert all(entry.part == entry.name.split(".")[0] for entry in entries)


@pytest.mark.parametrize("planner", [PLAIN, RESIDUAL])
@pytest.mark.parametrize(
    ("task", "n_stages"), [("Task04_Hippocampus", 4), ("Task51_SarcomaCT", 6), ("Task54_CineLV", 7)]
)
def test_decoder_levels_match_by_resolution(planner: str, task: str, n_stages: int) -> None:
    """A marker written into the shared weights of a level comes out at that level's resolution, however deep."""
    shared, of = corpus(planner), topology(task, planner, narrow=NARROW)
    assert of.n_stages == n_stages
    tensors = random_tensors(shared)
    last_conv = {PLAIN: 1, RESIDUAL: 0}[planner]
    for level in range(6):
        tensors[f"decoder.{level}.convs.{last_conv}.norm.weight"].zero_()
        tensors[f"decoder.{level}.convs.{last_conv}.norm.bias"].fill_(100 + level)
    network = of.build().double()
    network.load_state_dict(project(tensors, plan_projection(shared.shapes(), network, of)), strict=False)
    marked: dict[int, torch.Size] = {}
    for stage in network.decoder.stages:
        stage.register_forward_hook(lambda _m, _i, y: marked.update({round(y.min().item()) - 100: y.shape[2:]}))
    image = smallest_image(of)
    with torch.no_grad():
        network(image)
    strides = torch.tensor(of.strides).cumprod(0)
    resolution = [torch.Size((torch.tensor(image.shape[2:]) // s).tolist()) for s in strides]
    assert marked == dict(enumerate(resolution[:-1]))


def test_the_same_index_is_another_level_in_a_deeper_decoder() -> None:
    shallow, deep = topology("Task04_Hippocampus"), topology("Task03_Liver")
    assert (shallow.n_stages, deep.n_stages) == (4, 6)
    shared = corpus(PLAIN, narrow=1)
    name = "decoder.stages.0.convs.0.conv.weight"
    of_shallow, of_deep = ({e.name: e.role for e in plan(shared, of)} for of in (shallow, deep))
    assert of_shallow[name] == "decoder.2.convs.0.conv.weight"
    assert of_deep[name] == "decoder.4.convs.0.conv.weight"
    last = "decoder.{}.{}.convs.1.norm.bias"
    assert of_shallow[last.format("stages", 2)] == of_deep[last.format("stages", 4)] == "decoder.0.convs.1.norm.bias"
    assert set(of_shallow.values()) < set(of_deep.values())
