"""What is read from a plan, and that the fixtures are the plans they claim to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixture_topologies import CONFIGURATIONS, PLANNERS, TASKS, architecture, fixture, topology

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.networks.topology import Topology

PLAIN = "ExperimentPlanner"
# patches that nnU-Net 2.8.1 planned from the images themselves; the fixtures come from medians only
PLANNED_FROM_IMAGES = {
    "Task04_Hippocampus": [40, 56, 40],
    "Task51_SarcomaCT": [64, 160, 192],
    "Task52_SarcomaMR": [64, 160, 160],
    "Task53_SarcomaPET": [40, 72, 40],
    "Task54_CineLV": [10, 256, 256],
}


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_reads_every_fixture(planner: str, configuration: str) -> None:
    for task in TASKS:
        of = topology(task, planner, configuration)
        patch = fixture(task)["planners"][planner]["configurations"][configuration]["patch_size"]
        assert of.family == ("PlainConvUNet" if planner == PLAIN else "ResidualEncoderUNet")
        assert of.dim == len(patch) == {"3d_fullres": 3, "2d": 2}[configuration]
        assert len(of.strides) == len(of.kernel_sizes) == len(of.features) == of.n_stages
        assert all(edge % stride == 0 for edge, stride in zip(patch, of.total_stride, strict=True))


def test_anisotropic_plan() -> None:
    of = topology("Task54_CineLV")
    assert of.kernel_sizes == ((1, 3, 3), (1, 3, 3), *[(3, 3, 3)] * 5)
    assert of.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), *[(1, 2, 2)] * 3)
    assert of.total_stride == (2, 64, 64)
    assert of.features == (32, 64, 128, 256, 320, 320, 320)


def test_one_number_stands_for_every_level_and_axis() -> None:
    entry = architecture("Task04_Hippocampus", PLAIN, "3d_fullres")
    entry["arch_kwargs"].update(kernel_sizes=3, strides=[1, 2, 2, 2])
    of = Topology.from_architecture(entry)
    assert of.kernel_sizes == ((3, 3, 3),) * 4
    assert of.strides == ((1, 1, 1), *[(2, 2, 2)] * 3)


@pytest.mark.parametrize(("task", "patch"), PLANNED_FROM_IMAGES.items())
def test_fixtures_are_the_plans_of_the_real_images(task: str, patch: list[int]) -> None:
    assert fixture(task)["planners"][PLAIN]["configurations"]["3d_fullres"]["patch_size"] == patch


def test_builds_the_stock_network_and_a_skeleton_without_storage() -> None:
    of = topology("Task04_Hippocampus", narrow=8)
    network, skeleton = of.build(2, 3, deep_supervision=True), of.build(2, 3, device="meta")
    assert type(network).__name__ == of.family and type(network).__module__.startswith("dynamic_network_architectures")
    outputs = network(torch.zeros(1, 2, 16, 8, 8))
    assert [tuple(o.shape) for o in outputs] == [(1, 3, 16, 8, 8), (1, 3, 8, 4, 4), (1, 3, 4, 2, 2)]
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    shapes, bare = ({n: p.shape for n, p in net.named_parameters()} for net in (network, skeleton))
    assert shapes == bare


def test_other_network_classes_are_refused() -> None:
    entry = architecture("Task04_Hippocampus", PLAIN, "3d_fullres")
    entry["network_class_name"] = "dynamic_network_architectures.architectures.primus.Primus"
    with pytest.raises(HSSLError, match=r"Primus.*PlainConvUNet, ResidualEncoderUNet"):
        Topology.from_architecture(entry)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("nonlin", "os.mkdir"),  # nnU-Net calls it with `nonlin_kwargs`
        ("norm_op", "torch.hub.load"),
        ("conv_op", "torch.nn.modules.conv.torch.hub.load"),  # torch.nn's modules hold other modules
        ("dropout_op", "dynamic_network_architectures.architectures.unet.torch.os.Popen"),
        ("nonlin", "torch.nn.functional.leaky_relu"),
    ],
)
def test_a_plan_cannot_have_anything_but_layers_called(
    part: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = architecture("Task04_Hippocampus", PLAIN, "3d_fullres")
    entry["arch_kwargs"] |= {part: name, f"{part}_kwargs": {"path": "called"}}
    with pytest.raises(HSSLError, match=f"a file name '{name}' as a part of the network"):
        Topology.from_architecture(entry, "a file").build()
    assert not Path("called").exists()


def test_a_network_class_of_another_package_is_not_imported() -> None:
    entry = architecture("Task04_Hippocampus", PLAIN, "3d_fullres")
    with pytest.raises(HSSLError, match="evil.PlainConvUNet"):
        Topology.from_architecture({**entry, "network_class_name": "evil.PlainConvUNet"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_stages": None}, "TypeError"),
        ({"strides": 2.5}, "TypeError"),
        ({"features_per_stage": ["wide"] * 4}, "ValueError"),
        ({"strides": [[1, 1, 1], [2, 2], [2, 2, 2], [2, 2, 2]]}, r"ValueError.*\(2, 2\) is not of 3 axes"),
    ],
)
def test_an_entry_that_was_spoilt_is_told(change: dict[str, object], said: str) -> None:
    entry = architecture("Task04_Hippocampus", PLAIN, "3d_fullres")
    entry["arch_kwargs"] |= change
    with pytest.raises(HSSLError, match=f"`architecture` of a file does not describe a network .*: {said}.*Correct it"):
        Topology.from_architecture(entry, "a file")
    with pytest.raises(HSSLError, match="KeyError..network_class_name"):
        Topology.from_architecture({}, "a file")


@pytest.mark.parametrize("planner", PLANNERS)
def test_lists_for_another_number_of_stages_are_told(planner: str) -> None:
    stages = "n_conv_per_stage" if planner == PLAIN else "n_blocks_per_stage"
    for key in ("features_per_stage", "kernel_sizes", "strides", stages, "n_conv_per_stage_decoder"):
        entry = architecture("Task04_Hippocampus", planner, "3d_fullres")
        entry["arch_kwargs"][key] = entry["arch_kwargs"][key][1:]
        expected = len(entry["arch_kwargs"][key]) + 1
        told = (
            f"`{key}` in the `architecture` of a file has {expected - 1} entries, expected {expected} for `n_stages` 4"
        )
        with pytest.raises(HSSLError, match=f"{told}. Correct it"):
            Topology.from_architecture(entry, "a file")
