"""Nothing is left out: exact + adapted + fresh = all parameters of the network, for real plans as well."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from hssl_nnunet.networks.projection import Entry, plan_projection
from hssl_nnunet.networks.shared_weights import SharedWeights
from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.transfer.report import TransferReport, render

FOLDER = Path(__file__).parents[1] / "fixtures" / "topologies"
TASKS = sorted(path.stem for path in FOLDER.glob("*.json"))
SOURCES = ("Task04_Hippocampus", "Task05_Prostate", "Task53_SarcomaPET")  # 4 to 7 levels, iso- and anisotropic
PLANNERS = ("ExperimentPlanner", "nnUNetPlannerResEncM")


def topology(task: str, planner: str, configuration: str = "3d_fullres") -> Topology:
    content = json.loads((FOLDER / f"{task}.json").read_text())["planners"][planner]["configurations"]
    return Topology.from_architecture(content[configuration]["architecture"])


@cache
def shapes(planner: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return SharedWeights([topology(task, planner) for task in SOURCES]).shapes()


def report_on(task: str, planner: str, configuration: str) -> tuple[TransferReport, nn.Module]:
    target = topology(task, planner, configuration)
    network = target.build(4, 5, deep_supervision=True, device="meta")
    entries = plan_projection(shapes(planner), network, target)
    return TransferReport(dataset=task, configuration=configuration, entries=tuple(entries)), network


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_totals_are_the_whole_network(task: str, planner: str, configuration: str) -> None:
    report, network = report_on(task, planner, configuration)
    counts = [count for by_status in report.totals().values() for count in by_status.values()]
    parameters = list(network.parameters())
    assert sum(tensors for tensors, _ in counts) == len(parameters)
    assert sum(size for _, size in counts) == sum(p.numel() for p in parameters)
    encoder = sum(size for _, size in report.totals()["encoder"].values())
    assert encoder == sum(p.numel() for p in network.encoder.parameters())
    assert all(entry.how for entry in report.entries if entry.status != "exact")


@pytest.mark.parametrize("task", SOURCES)
@pytest.mark.parametrize("planner", PLANNERS)
def test_a_domain_of_the_corpus_takes_all_but_its_segmentation_layers(task: str, planner: str) -> None:
    report, network = report_on(task, planner, "3d_fullres")
    fresh = {entry.name for entry in report.entries if entry.status == "fresh"}
    assert fresh == {name for name, _ in network.named_parameters() if ".seg_layers." in name}


ENTRIES = (
    Entry("encoder.stages.0.w", "encoder.0.w", (4, 2, 1, 3, 3), "adapted", "kernel [3] summed"),
    Entry("encoder.stages.0.b", "encoder.0.b", (4,), "exact"),
    Entry("decoder.stages.0.w", "decoder.0.w", (1000, 2), "exact"),
    Entry("decoder.seg_layers.0.w", "decoder.0.segmentation.w", (3, 4), "fresh", "never transferred"),
)
REPORT = TransferReport(
    dataset="Dataset004_Tiny", configuration="3d_fullres", entries=ENTRIES, notes=("mind [case_1]",)
)


def test_totals_by_part() -> None:
    assert REPORT.totals() == {
        "encoder": {"exact": (1, 4), "adapted": (1, 72), "fresh": (0, 0)},
        "decoder": {"exact": (1, 2000), "adapted": (0, 0), "fresh": (1, 12)},
    }


def printed(full: bool) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160).print(render(REPORT, full))
    return stream.getvalue()


def test_summary_is_printed_without_tensors() -> None:
    text = printed(full=False)
    assert "1 (2,000)" in text and "Note: mind [case_1]" in text and "encoder.stages.0.w" not in text


def test_full_report_names_every_tensor_and_its_reason_before_the_summary_and_the_notes() -> None:
    text = printed(full=True)
    for entry in ENTRIES:
        line = next(line for line in text.splitlines() if entry.name in line)
        assert entry.status in line and entry.how in line and "x".join(map(str, entry.shape)) in line
    assert text.index("encoder.stages.0.w") < text.index("1 (2,000)") < text.index("Note: mind")


def test_json_is_plain_and_complete() -> None:
    content = json.loads(json.dumps(REPORT.to_json()))
    assert [entry["name"] for entry in content["entries"]] == [entry.name for entry in ENTRIES]
    assert content["totals"]["encoder"]["adapted"] == [1, 72] and content["notes"] == ["mind [case_1]"]
