"""`plan_and_preprocess`: stock files for labelled cases, the same form without masks, quarantine of bad images."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import re
import shutil
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

from hssl_nnunet.corpus import outputs, planning, screening
from hssl_nnunet.corpus.integrity import read_quarantine
from hssl_nnunet.corpus.preprocess import plan_and_preprocess
from hssl_nnunet.errors import HSSLError

Folders = dict[str, Path]
NAME = "Dataset031_Thing"
STOCK = "nnUNetPlans_3d_fullres"
UNLABELLED = "nnUNetPlans_3d_fullres_unlabelled"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads for nnU-Net's spawned pools, whose workers import torch, and 1/1000 of its 10e7 intensity samples."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))
    sample = DatasetFingerprintExtractor.collect_foreground_intensities

    def few(*args: Any, num_samples: int) -> Any:
        return sample(*args, num_samples=num_samples // 1000)

    monkeypatch.setattr(DatasetFingerprintExtractor, "collect_foreground_intensities", staticmethod(few))


def save(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1.0, 1.5, 2.0))
    sitk.WriteImage(image, str(path))


def voxels(seed: int) -> np.ndarray:
    """(20, 24, 28) with a rim of zeros, which is cropped off."""
    inner = np.random.default_rng(seed).normal(100, 20, (16, 20, 24)).astype(np.float32)
    return np.pad(inner, 2)


def dataset(raw: Path, *, training: str, test: str = "", channel: str = "MRI", masks: bool = True) -> Path:
    folder = raw / NAME
    for sub, cases in (("imagesTr", training), ("imagesTs", test)):
        for case in cases:
            save(folder / sub / f"{case}_0000.nii.gz", voxels(ord(case)))
    for case in training if masks else "":
        save(folder / "labelsTr" / f"{case}.nii.gz", (voxels(ord(case)) > 110).astype(np.uint8))
    content = {
        "channel_names": {"0": channel},
        "labels": {"background": 0, "thing": 1} if masks else {},
        "numTraining": len(training),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: blosc2.open(str(p))[:] for p in sorted(folder.glob("*.b2nd"))}


def test_labelled_cases_are_stock_files(
    nnunet_folders: Folders, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunetv2.experiment_planning import plan_and_preprocess_api as stock

    dataset(nnunet_folders["nnUNet_raw"], training="abc", test="d", channel="CT")
    report = plan_and_preprocess([31], num_processes=1)
    assert report.exit_code == 0 and report.plans_name == "nnUNetPlans"
    assert [(d.labelled, d.unlabelled, d.quarantined) for d in report.datasets] == [(3, 1, 0)]
    ours = nnunet_folders["nnUNet_preprocessed"] / NAME

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "stock"))
    stock.extract_fingerprints([31], num_processes=1, show_progress_bar=False)
    stock.plan_experiments([31])
    stock.preprocess([31], "nnUNetPlans", ["3d_fullres"], [1], show_progress_bar=False)
    theirs = tmp_path / "stock" / NAME

    for file in ("nnUNetPlans.json", "dataset_fingerprint.json", "dataset.json"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file
    expected, got = arrays(theirs / STOCK), arrays(ours / STOCK)
    assert sorted(got) == sorted(expected) == [f"{c}{s}.b2nd" for c in "abc" for s in ("", "_seg")]
    assert all(np.array_equal(got[name], expected[name]) for name in expected)
    assert sorted(arrays(ours / UNLABELLED)) == ["d.b2nd", "d_seg.b2nd"]
    # the same plan was used without masks: CT normalisation of the cropped image, spacing is the median and kept
    ct = json.loads((ours / "nnUNetPlans.json").read_text())["foreground_intensity_properties_per_channel"]["0"]
    clipped = np.clip(voxels(ord("d"))[2:-2, 2:-2, 2:-2], ct["percentile_00_5"], ct["percentile_99_5"])
    assert np.allclose(arrays(ours / UNLABELLED)["d.b2nd"][0], (clipped - ct["mean"]) / ct["std"], atol=1e-4)


def test_bad_image_is_quarantined_and_picked_up_after_repair(nnunet_folders: Folders, quick: None) -> None:
    raw = dataset(nnunet_folders["nnUNet_raw"], training="abc", test="d")
    before = (raw / "dataset.json").read_bytes()
    bad = raw / "imagesTr" / "a_0000.nii.gz"  # the first one: nnU-Net would choose its reader by it
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-300])
    (raw / "imagesTr" / "._b_0000.nii.gz").write_bytes(b"macOS")
    save(raw / "imagesTs" / "nosuffix.nii.gz", voxels(1))

    report = plan_and_preprocess([NAME], num_processes=1)
    assert report.exit_code == 3
    assert [(d.labelled, d.unlabelled, d.quarantined) for d in report.datasets] == [(2, 1, 2)]
    assert sorted(p.case for p in report.problems) == ["a", "nosuffix"]
    assert any("Rename it to nosuffix_0000.nii.gz" in p.remedy for p in report.problems)
    assert sorted(p.case for p in read_quarantine(NAME)) == ["a", "nosuffix"]
    folder = nnunet_folders["nnUNet_preprocessed"] / NAME
    assert sorted(arrays(folder / STOCK)) == ["b.b2nd", "b_seg.b2nd", "c.b2nd", "c_seg.b2nd"]
    copied = json.loads((folder / "dataset.json").read_text())
    assert copied["numTraining"] == 2 and "dataset" not in copied
    assert (raw / "dataset.json").read_bytes() == before

    bad.write_bytes(whole)
    (raw / "imagesTs" / "nosuffix.nii.gz").unlink()
    report = plan_and_preprocess([NAME], num_processes=1)
    assert report.exit_code == 0 and report.datasets[0].labelled == 3
    assert not (folder / "hssl_quarantine.json").exists()
    assert len(json.loads((folder / "dataset_fingerprint.json").read_text())["spacings"]) == 3
    assert "a.b2nd" in arrays(folder / STOCK)


def test_a_fill_value_that_nnunet_clips_does_not_set_a_ct_aside(nnunet_folders: Folders, quick: None) -> None:
    raw = dataset(nnunet_folders["nnUNet_raw"], training="ab", channel="CT")
    filled = voxels(ord("a"))
    filled[filled == 0] = -3.4e38
    save(raw / "imagesTr" / "a_0000.nii.gz", filled)
    assert plan_and_preprocess([NAME], num_processes=1).exit_code == 0
    image = arrays(nnunet_folders["nnUNet_preprocessed"] / NAME / STOCK)["a.b2nd"]
    assert np.isfinite(image).all() and image.std() > 0.5 and np.abs(image).max() < 10


@pytest.mark.parametrize(("channel", "masks"), [("MRI", True), ("CT", False)])
def test_a_fill_value_that_enters_the_statistics_sets_an_image_aside(
    nnunet_folders: Folders, channel: str, masks: bool
) -> None:
    raw = dataset(nnunet_folders["nnUNet_raw"], training="a", channel=channel, masks=masks)
    save(raw / "imagesTr" / "a_0000.nii.gz", np.where(voxels(ord("a")) == 0, np.float32(-3.4e38), voxels(ord("a"))))
    (problem,) = plan_and_preprocess([NAME], num_processes=1).problems
    assert problem.case == "a" and "too large" in problem.what


def test_without_masks(nnunet_folders: Folders) -> None:
    dataset(nnunet_folders["nnUNet_raw"], training="ab", test="c", channel="CT", masks=False)
    report = plan_and_preprocess([31], preset="cpu", num_processes=1)
    assert [(d.labelled, d.unlabelled, d.quarantined) for d in report.datasets] == [(0, 3, 0)]
    folder = nnunet_folders["nnUNet_preprocessed"] / NAME

    fingerprint = json.loads((folder / "dataset_fingerprint.json").read_text())
    assert fingerprint["spacings"] == [[2.0, 1.5, 1.0]] * 3
    assert fingerprint["shapes_after_crop"] == [[16, 20, 24]] * 3
    assert fingerprint["median_relative_size_after_cropping"] == pytest.approx(16 * 20 * 24 / (20 * 24 * 28))
    inside = np.concatenate([voxels(ord(c))[2:-2, 2:-2, 2:-2].ravel() for c in "abc"])
    measured = fingerprint["foreground_intensity_properties_per_channel"]["0"]
    assert measured["mean"] == pytest.approx(inside.mean(), rel=0.01)
    assert measured["std"] == pytest.approx(inside.std(), rel=0.01)
    assert measured["percentile_99_5"] == pytest.approx(np.percentile(inside, 99.5), rel=0.01)

    plans = json.loads((folder / "nnUNetCPUPlans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["data_identifier"] == "nnUNetPlans_3d_fullres"
    assert configuration["architecture"]["arch_kwargs"]["features_per_stage"][0] == 16
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {}
    assert not (folder / STOCK).exists()  # stock training finds nothing
    image = arrays(folder / UNLABELLED)["a.b2nd"]
    clipped = np.clip(voxels(ord("a"))[2:-2, 2:-2, 2:-2], measured["percentile_00_5"], measured["percentile_99_5"])
    assert image.dtype == np.float32 and image.shape == (1, 16, 20, 24)
    assert np.allclose(image[0], (clipped - measured["mean"]) / measured["std"], atol=1e-4)
    properties = pickle.loads((folder / UNLABELLED / "a.pkl").read_bytes())
    assert properties["class_locations"] == {} and properties["bbox_used_for_cropping"][0] == [2, 18]


def test_only_changed_images_are_done_again(nnunet_folders: Folders) -> None:
    raw = dataset(nnunet_folders["nnUNet_raw"], training="abc", masks=False)
    plan_and_preprocess([31], num_processes=1)
    folder = nnunet_folders["nnUNet_preprocessed"] / NAME / UNLABELLED
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("?.b2nd")}
    save(raw / "imagesTr" / "b_0000.nii.gz", voxels(ord("b")) * 2)  # z-scored: the plan and the other images stay
    (raw / "imagesTr" / "c_0000.nii.gz").unlink()
    (folder.parent / "nnUNetPlans.json").unlink()
    recipe = json.loads((folder / "preprocessing.json").read_text())
    plan_and_preprocess([31], num_processes=1)
    after = {p.name: p.stat().st_mtime_ns for p in folder.glob("?.b2nd")}
    assert sorted(after) == ["a.b2nd", "b.b2nd"] and after["b.b2nd"] > before["b.b2nd"]
    assert json.loads((folder / "preprocessing.json").read_text())["spacing"] == recipe["spacing"]
    assert after["a.b2nd"] == before["a.b2nd"]
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_planner_survives_zero_augmentation_workers(nnunet_folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    dataset(nnunet_folders["nnUNet_raw"], training="a", masks=False)
    assert plan_and_preprocess([31], num_processes=1).datasets[0].unlabelled == 1


def test_same_name_in_both_image_folders(nnunet_folders: Folders) -> None:
    dataset(nnunet_folders["nnUNet_raw"], training="ab", test="a", masks=False)
    report = plan_and_preprocess([31], num_processes=1)
    (problem,) = report.problems
    assert "imagesTs" in problem.file and "same name" in problem.what
    assert (report.datasets[0].unlabelled, report.datasets[0].quarantined) == (2, 1)


def test_dataset_of_bad_images_only_is_listed(nnunet_folders: Folders) -> None:
    raw = dataset(nnunet_folders["nnUNet_raw"], training="a", masks=False)
    save(raw / "imagesTr" / "a_0000.nii.gz", np.zeros((4, 5, 6), np.float32))
    report = plan_and_preprocess([31], num_processes=1)
    assert report.exit_code == 3 and "every voxel" in report.problems[0].what
    assert (report.datasets[0].unlabelled, report.datasets[0].quarantined) == (0, 1)
    assert report.lines == [f"{NAME}: 0 with masks, 0 without, 1 quarantined; nothing is left to plan from"]
    assert list((nnunet_folders["nnUNet_preprocessed"] / NAME).glob("*Plans.json")) == []


def test_a_configuration_that_nnunet_does_not_plan(nnunet_folders: Folders) -> None:
    dataset(nnunet_folders["nnUNet_raw"], training="ab", masks=False)
    told = f"nnUNetPlans of {NAME} have no 3d_lowres (planned: 2d, 3d_fullres)"
    with pytest.raises(HSSLError, match=rf"{re.escape(told)}\. .*-c"):
        plan_and_preprocess([31], ["3d_lowres"], num_processes=1)
    report = plan_and_preprocess([31], ["3d_lowres", "3d_fullres"], num_processes=1)
    assert report.lines == [
        f"{NAME}: 0 with masks, 2 without, 0 quarantined",
        f"Note: {told}.",
        "Plans: nnUNetPlans",
    ]
    assert len(arrays(nnunet_folders["nnUNet_preprocessed"] / NAME / UNLABELLED)) == 4


def test_a_dataset_without_the_configuration_does_not_stop_the_others(
    nnunet_folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, preprocessed = nnunet_folders["nnUNet_raw"], nnunet_folders["nnUNet_preprocessed"]
    dataset(raw, training="ab", masks=False)
    plan_and_preprocess([31], num_processes=1)
    assert "U-Net configuration" not in capsys.readouterr().out  # nnU-Net's pages of plans
    other = "Dataset032_Other"
    shutil.copytree(raw / NAME, raw / other)
    shutil.copytree(preprocessed / NAME, preprocessed / other)
    plans = {name: preprocessed / name / "Mine.json" for name in (NAME, other)}
    content = json.loads((preprocessed / NAME / "nnUNetPlans.json").read_text()) | {"plans_name": "Mine"}
    plans[NAME].write_text(json.dumps(content))
    content["configurations"]["slow"] = {"inherits_from": "3d_fullres", "data_identifier": "Mine_slow"}
    plans[other].write_text(json.dumps(content))
    report = plan_and_preprocess([31, 32], ["slow"], num_processes=1, plans_name="Mine")
    assert report.exit_code == 3
    assert report.lines == [
        f"{NAME}: nothing preprocessed",
        f"Note: Mine of {NAME} have no slow (planned: 2d, 3d_fullres).",
        f"{other}: 0 with masks, 2 without, 0 quarantined",
        "Plans: Mine",
    ]
    assert len(arrays(preprocessed / other / "Mine_slow_unlabelled")) == 4
    with pytest.raises(HSSLError, match=f"{NAME} have no slower .*{other} have no slower"):
        plan_and_preprocess([31, 32], ["slower"], num_processes=1, plans_name="Mine")


def test_plans_of_another_planner_are_used_as_they_are(nnunet_folders: Folders, quick: None) -> None:
    from nnunetv2.experiment_planning import plan_and_preprocess_api as stock

    dataset(nnunet_folders["nnUNet_raw"], training="abc", test="d")
    folder = nnunet_folders["nnUNet_preprocessed"] / NAME
    planner = "nnUNetv2_plan_experiment -d 31 -pl PLANNER -overwrite_plans_name MyResEnc"
    command = f"nnUNetv2_extract_fingerprint -d 31 && {planner}"
    with pytest.raises(HSSLError, match=rf"has no MyResEnc.json in {folder}\. Run `{command}` first"):
        plan_and_preprocess([31], num_processes=1, plans_name="MyResEnc")
    stock.extract_fingerprints([31], num_processes=1, show_progress_bar=False)
    stock.plan_experiments([31], "nnUNetPlannerResEncM", overwrite_plans_name="MyResEnc")
    plans = (folder / "MyResEnc.json").read_bytes()
    with pytest.raises(HSSLError, match=rf"It has MyResEnc: name one with -p, or run `{command[:-5]}"):
        plan_and_preprocess([31], num_processes=1, plans_name="MyRes")
    report = plan_and_preprocess([31], num_processes=1, plans_name="MyResEnc")
    assert [(d.labelled, d.unlabelled) for d in report.datasets] == [(3, 1)]
    assert sorted(arrays(folder / STOCK)) == [f"{c}{s}.b2nd" for c in "abc" for s in ("", "_seg")]
    assert sorted(arrays(folder / UNLABELLED)) == ["d.b2nd", "d_seg.b2nd"]
    assert (folder / "MyResEnc.json").read_bytes() == plans and not (folder / "nnUNetPlans.json").exists()
    with pytest.raises(HSSLError, match="--preset cpu and -p MyResEnc"):
        plan_and_preprocess([31], preset="cpu", plans_name="MyResEnc")
    shutil.copy(folder / "MyResEnc.json", folder / "Copy.json")
    with pytest.raises(HSSLError, match="calls itself `MyResEnc`"):
        plan_and_preprocess([31], plans_name="Copy")


def test_images_without_a_mask_take_part_beside_those_with_one(nnunet_folders: Folders, quick: None) -> None:
    raw = dataset(nnunet_folders["nnUNet_raw"], training="abc", test="d")
    (raw / "labelsTr" / "b.nii.gz").unlink()
    save(raw / "labelsTr" / "lost.nii.gz", (voxels(7) > 110).astype(np.uint8))
    report = plan_and_preprocess([31], num_processes=1)
    assert report.exit_code == 3
    assert [(p.case, p.what, p.file) for p in report.problems] == [
        ("lost", "mask without image", str(raw / "labelsTr" / "lost.nii.gz"))
    ]
    assert [(d.labelled, d.unlabelled, d.quarantined) for d in report.datasets] == [(2, 2, 1)]
    assert "treated as images without masks: b." in report.datasets[0].notes[0]
    folder = nnunet_folders["nnUNet_preprocessed"] / NAME
    assert len(json.loads((folder / "dataset_fingerprint.json").read_text())["spacings"]) == 2  # planned from a and c
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 2
    assert sorted(arrays(folder / STOCK)) == ["a.b2nd", "a_seg.b2nd", "c.b2nd", "c_seg.b2nd"]
    assert sorted(arrays(folder / UNLABELLED)) == ["b.b2nd", "b_seg.b2nd", "d.b2nd", "d_seg.b2nd"]
    assert sorted(p.name for p in (folder / "gt_segmentations").iterdir()) == ["a.nii.gz", "c.nii.gz"]

    save(raw / "labelsTr" / "b.nii.gz", (voxels(ord("b")) > 110).astype(np.uint8))
    (raw / "labelsTr" / "lost.nii.gz").unlink()
    report = plan_and_preprocess([31], num_processes=1)
    assert report.exit_code == 0 and report.datasets[0].notes == ()
    assert "b.b2nd" in arrays(folder / STOCK) and "b.b2nd" not in arrays(folder / UNLABELLED)


def test_labels_without_masks_are_noted(nnunet_folders: Folders) -> None:
    raw = dataset(nnunet_folders["nnUNet_raw"], training="ab", masks=False)
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0, "thing": 1}}))
    report = plan_and_preprocess([31], num_processes=1)
    (note,) = report.datasets[0].notes
    assert "treated as images without masks" in note and f"Note: {note}" in report.lines
    assert (report.datasets[0].labelled, report.datasets[0].unlabelled) == (0, 2)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many processes each long step is given; none is started."""
    used: dict[str, int] = {}

    def recorded(function: Callable[..., Any], cases: list[Any], num_processes: int, description: str) -> Any:
        used[description] = num_processes
        return map(function, cases)

    for module in (outputs, planning, screening):
        monkeypatch.setattr(module, "map_cases", recorded)
    return used


def test_the_fingerprint_may_have_processes_of_its_own(nnunet_folders: Folders, processes: dict[str, int]) -> None:
    dataset(nnunet_folders["nnUNet_raw"], training="a", masks=False)
    plan_and_preprocess([31], num_processes=3, fingerprint_processes=2)
    assert list(processes.values()) == [2, 2, 3]


def test_each_configuration_may_have_processes_of_its_own(nnunet_folders: Folders, processes: dict[str, int]) -> None:
    dataset(nnunet_folders["nnUNet_raw"], training="ab", masks=False)
    plan_and_preprocess([31], ["2d", "3d_fullres"], num_processes=[2, 4])
    assert processes == {
        f"Checking {NAME}": 4,
        "Extracting dataset fingerprint": 4,
        f"Preprocessing {NAME}, 2d": 2,
        f"Preprocessing {NAME}, 3d_fullres": 4,
    }


def test_an_unset_folder_is_named_before_an_image_is_read(
    nnunet_folders: Folders, unset: Callable[[str], None]
) -> None:
    raw = dataset(nnunet_folders["nnUNet_raw"], training="a", masks=False)
    (raw / "imagesTr").rename(raw / "elsewhere")  # would be the error if anything were read
    unset("nnUNet_preprocessed")
    with pytest.raises(HSSLError, match="nnUNet_preprocessed is not set"):
        plan_and_preprocess([31], num_processes=1)


def test_mistakes_are_named_before_anything_is_done(nnunet_folders: Folders) -> None:
    raw = dataset(nnunet_folders["nnUNet_raw"], training="a", masks=False)
    with pytest.raises(HSSLError, match="3d_fullress.*Known: 2d, 3d_fullres, 3d_lowres"):
        plan_and_preprocess([31], configurations=["3d_fullress"])
    with pytest.raises(HSSLError, match="Unknown preset 'huge'"):
        plan_and_preprocess([31], preset="huge")
    with pytest.raises(HSSLError, match="'32' was not found"):
        plan_and_preprocess([31, 32])
    (raw / "imagesTr" / "a_0000.nii.gz").unlink()
    with pytest.raises(HSSLError, match="imagesTr holds no image"):
        plan_and_preprocess([31])
    assert list(nnunet_folders["nnUNet_preprocessed"].iterdir()) == []


def test_files_without_the_channel_suffix_are_named(nnunet_folders: Folders) -> None:
    raw = dataset(nnunet_folders["nnUNet_raw"], training="a", masks=False)
    for number in (1, 2):
        save(raw / "imagesTr" / f"BRATS_{number:04d}.nii.gz", voxels(number))
    report = plan_and_preprocess([31], num_processes=1)
    assert [(p.case, p.what) for p in report.problems] == [
        (f"BRATS_{n:04d}", "the name lacks the channel suffix `_0000`") for n in (1, 2)
    ]
    assert "Rename it to BRATS_0001_0000.nii.gz" in report.problems[0].remedy
    assert (report.datasets[0].unlabelled, report.datasets[0].quarantined) == (1, 2)
