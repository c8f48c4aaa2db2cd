"""A stopped `plan_and_preprocess` goes on with the cases it had not done, and keeps none that is out of date."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from test_preprocess import NAME, STOCK, Folders, arrays, dataset, quick, save, voxels

from hssl_nnunet.corpus.preprocess import plan_and_preprocess

__all__ = ["quick"]  # a fixture


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cases that nnU-Net's preprocessor has been given."""
    names: list[str] = []
    save_case = DefaultPreprocessor.run_case_save

    def recorded(self: Any, output: str, *args: Any) -> None:
        names.append(Path(output).name)
        save_case(self, output, *args)

    monkeypatch.setattr(DefaultPreprocessor, "run_case_save", recorded)
    return names


def preprocess() -> None:
    plan_and_preprocess([31], num_processes=1)


def test_a_stopped_run_goes_on_and_training_never_sees_a_part(
    nnunet_folders: Folders, quick: None, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(nnunet_folders["nnUNet_raw"], training="abc")
    folder = nnunet_folders["nnUNet_preprocessed"] / NAME
    recorded = DefaultPreprocessor.run_case_save

    def killed(self: Any, output: str, *args: Any) -> None:
        if output.endswith("b"):
            Path(output + ".b2nd").write_bytes(b"half")
            raise KeyboardInterrupt
        recorded(self, output, *args)

    with monkeypatch.context() as patch:
        patch.setattr(DefaultPreprocessor, "run_case_save", killed)
        with pytest.raises(KeyboardInterrupt):
            preprocess()
    assert done == ["a"] and not (folder / STOCK).exists()
    left = folder / f".{STOCK}.unfinished" / ".b.1.tmp"  # of a worker that was killed
    left.mkdir()
    (left / "b.b2nd").write_bytes(b"half")
    preprocess()
    assert done == ["a", "b", "c"]
    assert sorted(arrays(folder / STOCK)) == [f"{c}{s}.b2nd" for c in "abc" for s in ("", "_seg")]
    assert all(len(pickle.loads((folder / STOCK / f"{c}.pkl").read_bytes())["class_locations"][1]) for c in "abc")
    assert sorted(p.name for p in (folder / "gt_segmentations").iterdir()) == [f"{c}.nii.gz" for c in "abc"]
    assert not [p for p in (*folder.iterdir(), *(folder / STOCK).iterdir()) if p.name.startswith(".")]
    preprocess()
    assert done == ["a", "b", "c"]


def change_labels(raw: Path, ours: Path) -> None:
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0, "thing": 1, "other": 2}}))


def change_plans(raw: Path, ours: Path) -> None:
    path = ours / STOCK / "preprocessing.json"  # as if the files that are there came from plans of another spacing
    path.write_text(json.dumps(json.loads(path.read_text()) | {"spacing": [9.0, 9.0, 9.0]}))


CHANGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "an image": (lambda raw, _: save(raw / "imagesTr" / "b_0000.nii.gz", voxels(98) * 2), "b"),
    "a mask": (lambda raw, _: save(raw / "labelsTr" / "b.nii.gz", (voxels(98) > 90).astype(np.uint8)), "b"),
    "lost properties": (lambda _, ours: (ours / STOCK / "c.pkl").unlink(), "c"),
    "labels": (change_labels, "abc"),
    "plans": (change_plans, "abc"),
    "stock nnU-Net's files": (lambda _, ours: (ours / STOCK / "preprocessing.json").unlink(), "abc"),
}


@pytest.mark.parametrize(("change", "again"), CHANGES.values(), ids=list(CHANGES))
def test_what_is_out_of_date_is_done_again(
    change: Callable[[Path, Path], object], again: str, nnunet_folders: Folders, quick: None, done: list[str]
) -> None:
    raw, ours = dataset(nnunet_folders["nnUNet_raw"], training="abc"), nnunet_folders["nnUNet_preprocessed"] / NAME
    preprocess()
    done.clear()
    change(raw, ours)
    preprocess()
    assert done == list(again)
    assert sorted(arrays(ours / STOCK)) == [f"{c}{s}.b2nd" for c in "abc" for s in ("", "_seg")]


def test_an_image_that_changes_while_it_is_preprocessed_is_done_again(
    nnunet_folders: Folders, quick: None, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = dataset(nnunet_folders["nnUNet_raw"], training="ab")
    run_case = DefaultPreprocessor.run_case

    def changed(self: Any, images: list[str], *args: Any) -> Any:
        result = run_case(self, images, *args)
        if images[0].endswith("b_0000.nii.gz"):
            save(raw / "imagesTr" / "b_0000.nii.gz", voxels(98) * 2)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(DefaultPreprocessor, "run_case", changed)
        preprocess()
    assert done == ["a", "b"]
    preprocess()
    assert done == ["a", "b", "b"]


def test_cases_that_are_gone_leave_nothing(nnunet_folders: Folders, quick: None, done: list[str]) -> None:
    raw = dataset(nnunet_folders["nnUNet_raw"], training="abc")
    preprocess()
    for path in (raw / "imagesTr" / "c_0000.nii.gz", raw / "labelsTr" / "c.nii.gz"):
        path.unlink()
    preprocess()
    ours = nnunet_folders["nnUNet_preprocessed"] / NAME / STOCK
    assert sorted(p.name for p in ours.iterdir()) == sorted(
        ["preprocessing.json", *(f"{c}{s}" for c in "ab" for s in (".b2nd", "_seg.b2nd", ".pkl"))]
    )
