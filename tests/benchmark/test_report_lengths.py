"""Arms of another length are told, marked, and establish nothing; what is not known is said not to be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_benchmark import DATASETS, Page, run, written_plan

from hssl_nnunet.benchmark.arms import Arm
from hssl_nnunet.benchmark.records import write_record
from hssl_nnunet.benchmark.report import lengths
from hssl_nnunet.benchmark.report.content import Content, read_content
from hssl_nnunet.benchmark.report.lengths import Pretrained, pretrained, unequal
from hssl_nnunet.benchmark.report.page import write_report

VALUES = {"num_epochs": 50, "num_iterations_per_epoch": 50, "chunks_per_step": 4, "images_per_chunk": 2}
ARMS = {
    "vanilla": Arm(description="stock", trainer="nnUNetTrainerHSSLVanilla"),
    "hssl": Arm(description="whole", pretrained_on="all"),
    "mae": Arm(description="masked", pretrained_on="all", pretraining={"loss": {"image": 0}}),
    "long": Arm(description="twice as many steps", pretrained_on="all", pretraining={"num_epochs": 100}),
    "wide": Arm(description="more images a step", pretrained_on="all", pretraining={"chunks_per_step": 8}),
    "long_encoder": Arm(description="of long", weights_of="long", finetuning={"transfer": "encoder"}),
    "external_x": Arm(description="from elsewhere", weights_file="gone/x.safetensors"),
    "again": Arm(description="as long again", pretrained_on="target", continues="hssl"),
    "after_x": Arm(description="after another's", pretrained_on="target", continues="external_x"),
}


@pytest.fixture
def content(tmp_path: Path) -> Content:
    """One run of each arm; fine-tuning of `mae` is longer."""
    for arm in ARMS:
        changes: dict[str, Any] = {"num_epochs": 80} if arm == "mae" else {}
        write_record(tmp_path, replace(run(DATASETS[0], "5%", "hssl", 0, **changes), arm=arm))
    written_plan(tmp_path, arms=ARMS, plan_values={"pretraining": VALUES})
    return read_content(tmp_path)


def test_the_length_of_each_pretraining_is_computed_where_it_is_known(content: Content) -> None:
    same, longer = Pretrained(steps=2500, images=20_000), Pretrained(steps=5000, images=40_000)
    assert pretrained(content) == {
        "hssl": same,
        "mae": same,
        "long": longer,
        "wide": Pretrained(steps=2500, images=40_000),
        "long_encoder": longer,
        "external_x": None,
        "again": longer,
        "after_x": None,
    }
    old = replace(content, plan=replace(content.plan, plan_values={}))
    assert set(pretrained(old).values()) == {None}


def test_a_weights_file_that_is_there_tells_its_length(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(lengths, "file_values", lambda path: asked.append(path) or {**VALUES, "num_epochs": 7})
    assert pretrained(content)["external_x"] == Pretrained(steps=350, images=2800)
    assert asked == [content.folder / "gone/x.safetensors"] * 2
    assert pretrained(content)["after_x"] == Pretrained(steps=2850, images=22_800)


def test_arms_of_another_length_are_named_with_what_differs(content: Content) -> None:
    found = unequal(content)
    assert found.keys() == {"mae", "long", "wide", "long_encoder", "external_x", "again", "after_x"}
    assert found["mae"] == f"fine-tuned for 800 steps on {DATASETS[0]}, hssl for 400"
    assert found["long"].replace("\u202f", " ") == (
        "pretrained for 5 000 steps of 40 000 images, hssl for 2 500 steps of 20 000 images"
    )
    assert "not known" in found["external_x"]
    equal = [r for r in content.records if r.arm in ("vanilla", "hssl")]
    assert unequal(replace(content, records=tuple(equal))) == {}


def test_the_page_marks_them_in_the_answer_the_tables_and_the_numbers(content: Content) -> None:
    path = write_report(content.folder)
    page = Page(path.read_text(encoding="utf-8"))
    assert "mae: fine-tuned for 800 steps" in page.sections["answer"]
    rows = {row[0]: row[1:] for row in page.tables["Results of every arm"] if len(row) == 1 + 2 + 4}
    assert {"vanilla", "hssl", "mae ≠", "long ≠", "external_x ≠"} <= rows.keys()
    assert rows["mae ≠"][2].endswith("≠") and not rows["long ≠"][2].endswith("≠")  # that pair differs in fine-tuning
    assert page.grouped("Time and memory of every arm")[DATASETS[0], "mae ≠"][1] == "800"
    weights = {row[0]: row[1:] for row in page.tables["Pretraining"]}
    assert weights["external_x ≠"] == ["–", "–", "–", "gone/x.safetensors", "–"]
    told = json.loads(path.with_suffix(".json").read_text())
    assert told["pretrained"]["long"] == {"steps": 5000, "images": 40_000}
    assert told["unequal"].keys() == unequal(content).keys()
    assert [c["equal_length"] for c in told["comparisons"] if c["arm"] == "mae"] == [False]
