"""What `benchmark.json` and the runner's files add to the page."""

from __future__ import annotations

import json
from pathlib import Path

from hssl_nnunet.benchmark.records import CaseScore, EpochScore, RunRecord, write_record
from hssl_nnunet.benchmark.report.facts import read_facts
from hssl_nnunet.benchmark.report.page import write_report

TARGET = "Dataset004_Hippocampus"


def record(arm: str, dice: float) -> RunRecord:
    """A run with one patient, and a curve."""
    return RunRecord(
        dataset_name=TARGET,
        budget="5%",
        arm=arm,
        seed=0,
        training_cases=("b",),
        num_epochs=2,
        num_iterations_per_epoch=1,
        train_s=1.0,
        peak_gib=1.0,
        weights_sha256=None,
        epochs=tuple(EpochScore(epoch=epoch, dice=dice * epoch / 2) for epoch in (1, 2)),
        scores=(CaseScore(case="a", patient="a", label="1", dice=dice, nsd=0.5, hd95_mm=1.0),),
    )


def test_a_tuning_says_that_it_is_no_evidence(tmp_path: Path) -> None:
    for arm in ("scratch", "hssl"):
        write_record(tmp_path, record(arm, 0.5))
    for tune in (False, True):
        (tmp_path / "benchmark.json").write_text(json.dumps({"tune": tune}))
        page = write_report(tmp_path).read_text(encoding="utf-8")
        assert ("everything here was scored on validation cases" in page) == tune


def test_an_arm_whose_name_begins_alike_has_a_transfer_of_its_own(tmp_path: Path) -> None:
    content = {"plans_name": "P", "configuration": "3d_fullres", "datasets": [TARGET]}
    (tmp_path / "benchmark.json").write_text(json.dumps({**content, "arms": ["hssl", "hssl_small"]}))
    fold = tmp_path / "nnUNet_results" / TARGET / "nnUNetTrainerX__P_hssl_small_s0__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    totals = {"encoder": {"exact": [2, 9], "adapted": [1, 9], "fresh": [0, 0]}}
    (fold / "transfer.json").write_text(json.dumps({"totals": totals}))
    assert read_facts(tmp_path).transfer == {TARGET: {"hssl_small": {"exact": 2, "adapted": 1, "fresh": 0}}}


def test_without_vanilla_the_page_compares_with_scratch(tmp_path: Path) -> None:
    for arm, dice in (("scratch", 0.5), ("hssl", 0.6)):
        write_record(tmp_path, record(arm, dice))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Difference to scratch on the same patients and seeds" in page and "Dice points over scratch" in page
    assert "Difference to vanilla" not in page and "Dice points over vanilla" not in page
    assert "Epochs to reach the final Dice of scratch" in page and "final Dice of vanilla" not in page
