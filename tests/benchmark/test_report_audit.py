"""The leakage audit claims what a file of the benchmark shows, and no more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_benchmark import DATASETS, Page, run, written_plan

from hssl_nnunet.benchmark.arms import Arm
from hssl_nnunet.benchmark.records import LeakageCheck, RunRecord, write_record
from hssl_nnunet.benchmark.report.audit import EVERY_TARGET, audits
from hssl_nnunet.benchmark.report.content import read_content
from hssl_nnunet.benchmark.report.page import write_report

ONE, OTHER = DATASETS
CHECK = LeakageCheck(images=812, test_cases=18)
ARMS = {
    "scratch": Arm(description="none", trainer="nnUNetTrainerHSSLScratch"),
    "hssl": Arm(description="own", pretrained_on="all"),
    "encoder": Arm(description="of hssl", weights_of="hssl"),
    "file": Arm(description="file", weights_file="x.safetensors"),
}


def told(folder: Path, *records: RunRecord, leakage: dict[str, list[str]] | None = None) -> dict[tuple[str, str], str]:
    """(arm, target) -> what the audit says."""
    for record in records or (record_of("scratch", ONE),):
        write_record(folder, record)
    written_plan(folder, arms=ARMS)
    if leakage is not None:
        (folder / "leakage.json").write_text(json.dumps(leakage))
    return {(a.arm, a.dataset): ("REFUSED " if a.refused else "") + a.told for a in audits(read_content(folder))}


def record_of(arm: str, dataset_name: str, seed: int = 0, check: LeakageCheck | None = None) -> RunRecord:
    weights = None if arm == "scratch" else "ab" * 32
    like = run(dataset_name, "5%", "hssl", seed, leakage=check, weights_sha256=weights)
    return replace(like, arm=arm)


def test_without_a_file_that_says_so_nothing_is_said_to_be_compared(tmp_path: Path) -> None:
    found = told(tmp_path, *(record_of(arm, ONE) for arm in ARMS))
    assert found["scratch", EVERY_TARGET].startswith("nothing to leak")
    for arm in ("hssl", "encoder"):
        assert found[arm, EVERY_TARGET].endswith("by construction; the comparison before each run is not recorded")
    assert found["file", EVERY_TARGET] == "not checked"
    assert not [text for text in found.values() if "compared" in text]


def test_a_file_that_was_audited_says_so_and_one_that_has_seen_cases_is_refused(tmp_path: Path) -> None:
    assert told(tmp_path, leakage={"file": []})["file", EVERY_TARGET].startswith("its weights file was compared")
    seen = told(tmp_path, leakage={"file": [f"{ONE}:a", f"{OTHER}:b", f"{ONE}:c"]})
    assert {key: text for key, text in seen.items() if key[0] == "file"} == {
        ("file", ONE): "REFUSED a, c",
        ("file", OTHER): "REFUSED b",
    }


def test_only_runs_that_should_not_be_there_are_not_to_be_trusted(tmp_path: Path) -> None:
    seen = {"file": [f"{ONE}:a", f"{OTHER}:b"]}
    told(tmp_path, *(record_of(arm, ONE) for arm in ("scratch", "file")), leakage=seen)
    answer = Page(write_report(tmp_path).read_text()).sections["answer"]
    assert answer.count("Not to be trusted") == 1 and f"of file has seen test cases of {ONE}, see" in answer
    assert f"file was refused on {OTHER}, of which" in answer


def test_records_tell_what_was_compared_and_in_how_many_runs(tmp_path: Path) -> None:
    more = LeakageCheck(images=812, test_cases=5)
    records = [record_of("hssl", ONE, seed, CHECK if seed < 2 else None) for seed in range(3)]
    records += [record_of("hssl", OTHER, 0, more), record_of("file", ONE, 0, CHECK), record_of("file", OTHER, 0, CHECK)]
    found = told(tmp_path, *records)
    assert "before 2 of 3 runs" in found["hssl", ONE] and "812 images of the weights with 18" in found["hssl", ONE]
    assert "the other 1 run: test patients are left out" in found["hssl", ONE]
    assert "before 1 of 1 run," in found["hssl", OTHER] and found["hssl", OTHER].endswith("with 5 test cases")
    assert found["file", EVERY_TARGET].startswith("names, contents and patients compared before 1 of 1 run")
    assert "not checked" not in found["file", EVERY_TARGET]


def test_weights_that_do_not_say_what_they_have_seen_are_not_called_compared(tmp_path: Path) -> None:
    unknown = LeakageCheck(images=None, test_cases=18)
    text = told(tmp_path, record_of("file", ONE, 0, unknown), record_of("file", ONE, 1, unknown))["file", EVERY_TARGET]
    assert text.startswith("an overlap cannot be ruled out") and "2 of 2 runs" in text and "nothing found" not in text


@pytest.mark.parametrize(("weights", "said"), [("ab" * 32, "not checked"), (None, "nothing to leak")])
def test_an_arm_without_a_definition_is_judged_by_its_records(tmp_path: Path, weights: str | None, said: str) -> None:
    written_plan(tmp_path, arms={})
    write_record(tmp_path, run(ONE, "5%", "hssl", 0, weights_sha256=weights))
    (found,) = audits(read_content(tmp_path))
    assert found.told.startswith(said)
