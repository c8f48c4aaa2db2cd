"""A page tells all that it takes to repeat its benchmark."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_benchmark import DATASETS, Page, run, written_plan

from hssl_nnunet.benchmark.arms import Arm, known_arms
from hssl_nnunet.benchmark.plan import resolved
from hssl_nnunet.benchmark.records import write_record
from hssl_nnunet.benchmark.report import commands
from hssl_nnunet.benchmark.report.commands import definitions, preparation, values_file
from hssl_nnunet.benchmark.report.content import read_content
from hssl_nnunet.benchmark.report.page import write_report
from hssl_nnunet.typed_json import parse, to_json

OWN = {
    "long": Arm(description="twice as many steps", pretrained_on="all", pretraining={"num_epochs": 100}),
    "small": Arm(description="smaller steps", weights_of="long", finetuning={"initial_lr": 0.001}),
}
BASE: dict[str, Any] = {"pretraining": {"num_workers": 1}, "finetuning": {"use_mirroring": False}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_record(tmp_path, run(DATASETS[0], "5%", "hssl", 0, device="NVIDIA A"))
    write_record(tmp_path, run(DATASETS[0], "5%", "vanilla", 0))
    written_plan(
        tmp_path,
        command="second",
        commands=("first", "second"),
        datasets=("Dataset004_Hippocampus", "Dataset123_Liver"),
        domains=("Dataset055_Brain", "Dataset004_Hippocampus"),
        plans_name="nnUNetCPUPlans",
        plan_values=resolved("nnUNetCPUPlans", BASE, "test"),
        arms={"hssl": known_arms()["hssl"], **OWN},
        **BASE,
    )
    return tmp_path


def test_the_values_file_makes_the_arms_again(folder: Path) -> None:
    plan = read_content(folder).plan
    values = json.loads(values_file(plan))
    assert parse(dict[str, Arm], values.pop("arms"), "arms") == OWN  # what ships is not in it
    assert values == BASE
    shipped = {"hssl": known_arms()["hssl"]}
    assert values_file(replace(plan, arms=shipped, pretraining={}, finetuning={})) == ""


def test_preparation_names_every_dataset_once_and_the_preset_of_the_plans(folder: Path) -> None:
    plan = read_content(folder).plan
    assert preparation(plan) == [
        "hssl convert_msd -i Task04_Hippocampus",
        "hssl convert_msd -i Task123_Liver",
        "hssl convert_msd -i Task55_Brain",
        "hssl plan_and_preprocess -d 4 123 55 -c 3d_fullres --preset cpu",
    ]
    stock = replace(plan, domains=(), plans_name="nnUNetPlans", configuration="2d")
    assert preparation(stock)[-1] == "hssl plan_and_preprocess -d 4 123 -c 2d"
    assert preparation(replace(plan, plans_name="MyPlans")) == []


def test_the_page_and_its_numbers_tell_all_of_it(folder: Path) -> None:
    path = write_report(folder)
    page, asked = Page(path.read_text(encoding="utf-8")), json.loads(path.with_suffix(".json").read_text())["asked"]
    shown = page.sections["commands"]
    assert "first\nsecond" in shown and '"num_epochs": 100' in shown and "--preset cpu" in shown
    assert '"chunks_per_step": 4' in shown  # a default, with every other value that arms start from
    assert 'twice as many steps (pretrained_on: "all"; pretraining: {"num_epochs": 100})' in page.sections["answer"]
    assert asked["commands"] == ["first", "second"] and asked["preparation"] == preparation(read_content(folder).plan)
    assert {name: parse(Arm, arm, name) for name, arm in asked["arms"].items() if name in OWN} == OWN
    assert asked["plan_values"]["pretraining"]["num_workers"] == 1
    assert "Devices: NVIDIA A: 1 run; not recorded: 1 run." in page.sections["cost"]


def test_an_older_file_keeps_the_latest_command_alone(folder: Path) -> None:
    older = json.loads((folder / "benchmark.json").read_text())
    (folder / "benchmark.json").write_text(json.dumps({**older, "commands": []}))
    shown = Page(write_report(folder).read_text(encoding="utf-8")).sections["commands"]
    assert "The latest command; earlier ones are not recorded" in shown and "second" in shown


def test_a_weights_file_tells_how_it_was_made_where_it_still_lies(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = json.loads((folder / "benchmark.json").read_text())
    asked["arms"]["file"] = to_json(Arm(description="file", weights_file="x.safetensors"))
    (folder / "benchmark.json").write_text(json.dumps(asked))
    assert "is not known" in definitions(read_content(folder))["file"][-1]
    other = {**asked["plan_values"]["pretraining"], "num_epochs": 3}
    monkeypatch.setattr(commands, "file_values", lambda path: other)
    assert definitions(read_content(folder))["file"][-1] == 'pretrained with {"num_epochs": 3}'
