"""What a benchmark stands on: a later run on other plans, labels, images or masks is refused; files are read once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_benchmark import typed_plan

from hssl_nnunet.benchmark import data, leakage, masks, run
from hssl_nnunet.benchmark.data import DATA_FILE, measured
from hssl_nnunet.benchmark.leakage import checked
from hssl_nnunet.benchmark.masks import LABELS_FILE
from hssl_nnunet.benchmark.plan import BenchmarkPlan
from hssl_nnunet.benchmark.pretraining import _contents_kept_out
from hssl_nnunet.benchmark.splits import read_splits
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RAW

TARGET, DOMAIN = "Dataset001_Target", "Dataset002_Domain"
CASES = tuple(f"c{i}" for i in range(5))
DATASET = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "a": 1},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}
CONFIGURATION = {
    "data_identifier": "nnUNetPlans_3d_fullres",
    "spacing": [1.0, 1.0, 1.0],
    "patch_size": [8, 8, 8],
    "normalization_schemes": ["ZScoreNormalization"],
    "use_mask_for_norm": [False],
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {"n_stages": 2},
    },
}
PLANS = {
    "plans_name": "nnUNetPlans",
    "foreground_intensity_properties_per_channel": {},
    "configurations": {"3d_fullres": CONFIGURATION, "2d": {"patch_size": [8, 8]}},
}


def write(path: Path, seed: int, mask: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=(3, 8, 8))
    sitk.WriteImage(
        sitk.GetImageFromArray((values > 0).astype(np.uint8) if mask else values.astype(np.float32)), str(path)
    )


@pytest.fixture(autouse=True)
def raw(nnunet_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tiny datasets; their raw folder."""
    monkeypatch.setattr(data, "default_processes", lambda: 1)
    for number, name in enumerate((TARGET, DOMAIN)):
        raw, preprocessed = (nnunet_folders[variable] / name for variable in (ENV_RAW, ENV_PREPROCESSED))
        for index, case in enumerate(CASES):
            write(raw / "imagesTr" / f"{case}_0000.nii.gz", 10 * number + index)
            for folder in (raw / "labelsTr", preprocessed / "gt_segmentations"):
                write(folder / f"{case}.nii.gz", index, mask=True)
            (preprocessed / "nnUNetPlans_3d_fullres").mkdir(exist_ok=True)
            (preprocessed / "nnUNetPlans_3d_fullres" / f"{case}.b2nd").touch()
        for folder in (raw, preprocessed):
            (folder / "dataset.json").write_text(json.dumps(DATASET))
        (preprocessed / "nnUNetPlans.json").write_text(json.dumps(PLANS))
    return nnunet_folders[ENV_RAW]


def plan(**changes: Any) -> BenchmarkPlan:
    own = {"datasets": [TARGET], "domains": [TARGET, DOMAIN], "budgets": ["1"], "arms": ["scratch"]}
    return typed_plan(**{**own, **changes})


def write_plans(path: Path, patch_size: list[int]) -> None:
    configurations = {**PLANS["configurations"], "3d_fullres": {**CONFIGURATION, "patch_size": patch_size}}
    path.write_text(json.dumps({**PLANS, "configurations": configurations}))


def write_labels(path: Path, labels: dict[str, int]) -> None:
    path.write_text(json.dumps({**DATASET, "labels": {"background": 0, **labels}}))


def test_a_benchmark_whose_data_have_changed_is_refused_and_says_what(raw: Path, tmp_path: Path) -> None:
    workspace, preprocessed = Workspace(tmp_path / "bench"), tmp_path / ENV_PREPROCESSED
    run.prepare(workspace, plan())
    plans, dataset = preprocessed / TARGET / "nnUNetPlans.json", raw / TARGET / "dataset.json"
    image, mask = (
        raw / DOMAIN / "imagesTr" / "c1_0000.nii.gz",
        preprocessed / TARGET / "gt_segmentations" / "c2.nii.gz",
    )
    patch, labels = f"{TARGET}.plans.configuration.patch_size was", f"{TARGET}.dataset.labels.a was 1, is None"
    for change, restore, said in (
        (lambda: write_plans(plans, [9, 8, 8]), lambda: write_plans(plans, [8, 8, 8]), patch),
        (lambda: write_labels(dataset, {"b": 1}), lambda: write_labels(dataset, {"a": 1}), labels),
        (lambda: write(image, 99), lambda: write(image, 11), f"{DOMAIN}: images with other content: .*c1.b2nd"),
        (lambda: write(mask, 99, True), lambda: write(mask, 2, True), f"{TARGET}: masks with other content: c2"),
    ):
        change()
        with pytest.raises(HSSLError, match=f"other data: {said}.*restore the data, or .*-o"):
            run.prepare(workspace, plan(arms=["scratch", "hssl", "mae"]))
        restore()
        run.prepare(workspace, plan())  # a file written anew with the same content is the same


def test_a_domain_that_has_grown_teaches_no_rival(raw: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "bench")
    run.prepare(workspace, plan())
    for folder, name in (("imagesTr", "c9_0000"), ("labelsTr", "c9")):
        write(raw / DOMAIN / folder / f"{name}.nii.gz", 9, mask=folder == "labelsTr")
    run.prepare(workspace, plan())  # it is not preprocessed: no corpus takes it
    (tmp_path / ENV_PREPROCESSED / DOMAIN / "nnUNetPlans_3d_fullres" / "c9.b2nd").touch()
    with pytest.raises(HSSLError, match=f"{DOMAIN}: images new: nnUNetPlans_3d_fullres/c9.b2nd"):
        run.prepare(workspace, plan(arms=["mae"]))


def test_a_domain_may_become_a_target_and_a_benchmark_of_before_learns_its_data(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "bench")
    run.prepare(workspace, plan())
    run.prepare(workspace, plan(datasets=[DOMAIN]))
    run.prepare(workspace, plan())
    known = json.loads((workspace.folder / DATA_FILE).read_text())
    assert {name: len(state["masks"]) for name, state in known.items()} == {TARGET: 5, DOMAIN: 5}
    (workspace.folder / DATA_FILE).unlink()
    labels = {TARGET: {case: ["a"] for case in CASES}}  # as older versions kept them
    (workspace.folder / LABELS_FILE).write_text(json.dumps(labels))
    run.prepare(workspace, plan(seeds=2))
    assert json.loads((workspace.folder / DATA_FILE).read_text()).keys() == {TARGET, DOMAIN}


def test_masks_are_read_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = tmp_path / ENV_PREPROCESSED / TARGET, []
    monkeypatch.setattr(masks, "file_sha256", lambda path: read.append(path) or "")

    def labels() -> list[tuple[str, ...]]:
        found = masks.masks_of(tmp_path / "bench", folder, "nnUNetPlans_3d_fullres")
        return [found[case].labels for case in CASES]

    assert labels() == labels() == [("a",)] * 5 and len(read) == 5
    empty = folder / "gt_segmentations" / "c1.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 8, 8), np.uint8)), str(empty))
    os.utime(empty, ns=(1, 1))
    assert labels() == [("a",), (), ("a",), ("a",), ("a",)] and len(read) == 6
    empty.write_text("broken")
    with pytest.raises(HSSLError, match=f"{empty} cannot be read: .*preprocess {TARGET} again"):
        labels()
    (tmp_path / "bench" / LABELS_FILE).write_text("[3]")
    with pytest.raises(HSSLError, match=f"{LABELS_FILE} is not a valid"):
        labels()


def test_images_are_measured_once_and_a_test_image_of_the_same_name_is_another(raw: Path, tmp_path: Path) -> None:
    write(raw / TARGET / "imagesTs" / "c1_0000.nii.gz", 77)
    found = measured(plan(), [TARGET])[TARGET]
    labelled = {c.case.name: [f.content_hash for f in c.channels] for c in found.candidates if c.labelled}
    (other,) = (c.channels[0].content_hash for c in found.candidates if not c.labelled)
    assert found.contents == labelled and [other] not in found.contents.values()


def test_a_copy_of_a_test_case_is_kept_out_and_weights_that_have_seen_it_are_refused(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "bench")
    run.prepare(workspace, plan())
    splits = read_splits(workspace.folder)
    (case,) = splits[TARGET].test[:1]
    copy = raw / DOMAIN / "imagesTr" / "c3_0000.nii.gz"
    shutil.copyfile(raw / TARGET / "imagesTr" / f"{case}_0000.nii.gz", copy)
    (content,) = measured(plan(), [DOMAIN])[DOMAIN].contents["c3"]
    assert content in _contents_kept_out(plan(), splits)

    def seen(content_hash: str) -> Any:
        return SimpleNamespace(
            images=[SimpleNamespace(dataset_name=DOMAIN, case="x", patient="x", content_hash=content_hash)]
        )

    monkeypatch.setattr(leakage, "read_metadata", lambda path: seen(content))
    with pytest.raises(HSSLError, match=case):
        checked(plan(), tmp_path / "w", TARGET, splits[TARGET])
    monkeypatch.setattr(leakage, "read_metadata", lambda path: seen("other"))
    assert checked(plan(), tmp_path / "w", TARGET, splits[TARGET]).test_cases == len(splits[TARGET].test)
