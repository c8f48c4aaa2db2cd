"""Topologies for the tests: those of `tests/fixtures/topologies`, narrower ones, and the shared weights of a corpus."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hssl_nnunet.networks.shared_weights import SharedWeights
from hssl_nnunet.networks.topology import Topology

FOLDER = Path(__file__).parents[1] / "fixtures" / "topologies"
TASKS = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
PLANNERS = ("ExperimentPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL")
CONFIGURATIONS = ("3d_fullres", "2d")
NARROW = 8  # divides the widths where a test runs a network


@cache
def fixture(task: str) -> dict:
    """Content of one fixture file."""
    return json.loads((FOLDER / f"{task}.json").read_text())


def num_channels(task: str) -> int:
    return fixture(task)["num_channels"]


def architecture(task: str, planner: str, configuration: str) -> dict:
    """A fresh copy of a plan's `architecture` entry, that a test may change."""
    return copy.deepcopy(fixture(task)["planners"][planner]["configurations"][configuration]["architecture"])


@cache
def topology(
    task: str, planner: str = "ExperimentPlanner", configuration: str = "3d_fullres", narrow: int = 1
) -> Topology:
    """The topology of a task, its widths divided by `narrow`."""
    entry = architecture(task, planner, configuration)
    kwargs = entry["arch_kwargs"]
    kwargs["features_per_stage"] = [width // narrow for width in kwargs["features_per_stage"]]
    return Topology.from_architecture(entry)


@cache
def corpus(planner: str, configuration: str = "3d_fullres", narrow: int = NARROW) -> SharedWeights:
    """Shared weights of all tasks under one planner, without storage if they have their full width."""
    with torch.device("meta" if narrow == 1 else "cpu"):
        return SharedWeights([topology(task, planner, configuration, narrow) for task in TASKS])


def random_tensors(shared: SharedWeights, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Tensors in place of the shared weights, none of them 0 or 1 as after initialisation: every role has a say."""
    generator = torch.Generator().manual_seed(seed)
    return {
        role: torch.randn(shape, generator=generator, dtype=dtype) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        for role, shape in shared.shapes().items()
    }


def distinct_targets() -> list:
    """One pytest parameter (task, planner, configuration) for each distinct network among all fixtures."""
    seen: dict[tuple[str, int], tuple[str, str, str]] = {}
    for task in TASKS:
        for planner in PLANNERS:
            for configuration in CONFIGURATIONS:
                key = (json.dumps(architecture(task, planner, configuration), sort_keys=True), num_channels(task))
                seen.setdefault(key, (task, planner, configuration))
    return [pytest.param(*target, id="-".join(target)) for target in seen.values()]


def smallest_image(of: Topology, channels: int = 1, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """A random image `(1, channels, ...)` whose bottleneck has two voxels (instance norm needs more than one)."""
    shape = list(of.total_stride)
    shape[0] *= 2
    return torch.randn((1, channels, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def record_features(network: nn.Module) -> dict[str, Tensor]:
    """Make a stock U-Net write its features into the returned dict, by level: `encoder.0`, `decoder.2`, ..."""
    features: dict[str, Tensor] = {}
    stages = network.decoder.stages

    def keep_encoder(_module: nn.Module, _inputs: tuple, skips: list[Tensor]) -> None:
        features.update({f"encoder.{level}": skip for level, skip in enumerate(skips)})

    def keep_decoder(level: int):
        return lambda _module, _inputs, output: features.update({f"decoder.{level}": output})

    network.encoder.register_forward_hook(keep_encoder)
    for level, stage in enumerate(reversed(stages)):  # nnU-Net starts at the bottleneck
        stage.register_forward_hook(keep_decoder(level))
    return features
