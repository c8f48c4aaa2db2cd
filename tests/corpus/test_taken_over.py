"""What stock nnU-Net has preprocessed is kept where it is what would be made; else it is made anew, and why is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.experiment_planning import plan_and_preprocess_api as stock
from test_preprocess import NAME, STOCK, UNLABELLED, Folders, dataset, quick, save, voxels
from test_resumed_preprocessing import change_labels

from hssl_nnunet.corpus.preprocess import plan_and_preprocess

__all__ = ["quick"]  # a fixture


def dates(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("*.*")}


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("hssl_nnunet")]


def change_plans(raw: Path, ours: Path) -> None:
    """As if the folder had been made before somebody edited the plans that are there."""
    content = json.loads((ours / "nnUNetPlans.json").read_text())
    content["configurations"]["3d_fullres"]["spacing"] = [9.0, 9.0, 9.0]
    (ours / "nnUNetPlans.json").write_text(json.dumps(content))


def plan_again(raw: Path, ours: Path) -> None:
    content = json.loads((ours / "nnUNetPlans.json").read_text())
    content["configurations"]["3d_fullres"]["batch_size"] = 7  # the planner does not know when what changed
    (ours / "nnUNetPlans.json").write_text(json.dumps(content))


def cut(name: str) -> Callable[[Path, Path], None]:
    def damage(raw: Path, ours: Path) -> None:
        path = ours / STOCK / name
        path.write_bytes(path.read_bytes()[:-100])

    return damage


def another_preset(raw: Path, ours: Path) -> None:
    """Plans of another planner, newer than the images, that say the same of them."""
    stock.plan_experiments([31], "nnUNetPlannerResEncM")


def same_plans_again(raw: Path, ours: Path) -> None:
    plan_and_preprocess([31], ["2d"], num_processes=1)


CHANGES: dict[str, tuple[Callable[[Path, Path], object], str | None]] = {
    "nothing": (lambda *_: None, None),
    "plans of another preset": (another_preset, None),
    "another configuration": (same_plans_again, None),
    "an unlabelled image": (lambda raw, _: save(raw / "imagesTs" / "e_0000.nii.gz", voxels(5)), None),
    "an image": (lambda raw, _: save(raw / "imagesTr" / "b_0000.nii.gz", voxels(98)), "image or mask of b is newer"),
    "a mask": (
        lambda raw, _: save(raw / "labelsTr" / "b.nii.gz", (voxels(98) > 90).astype(np.uint8)),
        "image or mask of b is newer",
    ),
    "a case more": (lambda _, ours: (ours / STOCK / "c_seg.b2nd").unlink(), "c_seg.b2nd is missing"),
    "a cut image": (cut("b.b2nd"), "files of b are damaged"),
    "a cut mask": (cut("a_seg.b2nd"), "files of a are damaged"),
    "cut properties": (cut("c.pkl"), "files of c are damaged"),
    "other labels": (change_labels, "dataset.json, which has the labels, is newer"),
    "edited plans": (change_plans, "nnUNetPlans.json has other values for it"),
    "newer plans": (plan_again, "no plans that are older than its files"),
    "lost plans": (lambda _, ours: (ours / "nnUNetPlans.json").unlink(), "no plans that are older than its files"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_stock_files_are_taken_over_only_where_they_are_what_would_be_made(
    what: str, nnunet_folders: Folders, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    raw, ours = dataset(nnunet_folders["nnUNet_raw"], training="abc", test="d"), nnunet_folders["nnUNet_preprocessed"]
    folder = ours / NAME
    stock.extract_fingerprints([31], num_processes=1, show_progress_bar=False)
    stock.plan_experiments([31])
    stock.preprocess([31], "nnUNetPlans", ["3d_fullres"], [1], show_progress_bar=False)
    change, why = CHANGES[what]
    change(raw, folder)
    before = dates(folder / STOCK)
    report = plan_and_preprocess([31], num_processes=1)
    assert report.exit_code == 0
    after = dates(folder / STOCK)
    assert sorted(after) == [f"{c}{s}" for c in "abc" for s in (".b2nd", ".pkl", "_seg.b2nd")]
    assert (folder / UNLABELLED / "d.b2nd").is_file()
    why_anew = told(caplog)
    if why is None:
        assert after == before and why_anew == []
    else:
        assert all(after[name] > before.get(name, 0) for name in after)
        assert len(why_anew) == 1 and why in why_anew[0] and str(folder / STOCK) in why_anew[0]
    plan_and_preprocess([31], num_processes=1)
    assert dates(folder / STOCK) == after and told(caplog) == why_anew


def test_files_of_other_values_are_told_of_before_they_are_made_anew(
    nnunet_folders: Folders, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    raw = dataset(nnunet_folders["nnUNet_raw"], training="ab")
    plan_and_preprocess([31], num_processes=1)
    folder = nnunet_folders["nnUNet_preprocessed"] / NAME / STOCK
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0, "it": 1}}))
    plan_and_preprocess([31], num_processes=1)
    expected = [f"{folder} is made anew: it was made with other values: labels."]
    assert told(caplog) == expected
    os.utime(folder)  # its own date is no matter
    plan_and_preprocess([31], num_processes=1)
    assert told(caplog) == expected
