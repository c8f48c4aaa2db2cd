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
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2
from test_preprocess import NAME, STOCK, Folders, arrays, dataset, quick, save, voxels

from hssl_nnunet.corpus.outputs import LABELLED_RECIPE_FILE
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


def change_labels(raw: Path, ours: Path) -> None:
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0, "thing": 1, "other": 2}}))


def change_plans(raw: Path, ours: Path) -> None:
    path = ours / STOCK / LABELLED_RECIPE_FILE  # as if the files that are there came from plans of another spacing
    path.write_text(json.dumps(json.loads(path.read_text()) | {"spacing": [9.0, 9.0, 9.0]}))


def remove_c(raw: Path, ours: Path) -> None:
    (raw / "imagesTr" / "c_0000.nii.gz").unlink()
    (raw / "labelsTr" / "c.nii.gz").unlink()


CHANGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "nothing": (lambda *_: None, ""),
    "an image": (lambda raw, _: save(raw / "imagesTr" / "b_0000.nii.gz", voxels(98) * 2), "b"),
    "a mask": (lambda raw, _: save(raw / "labelsTr" / "b.nii.gz", (voxels(98) > 90).astype(np.uint8)), "b"),
    "lost properties": (lambda _, ours: (ours / STOCK / "c.pkl").unlink(), "c"),
    "labels": (change_labels, "abc"),
    "plans": (change_plans, "abc"),
    "stock nnU-Net's files": (lambda _, ours: (ours / STOCK / LABELLED_RECIPE_FILE).unlink(), ""),
    "a case less": (remove_c, ""),
}


def test_what_is_out_of_date_is_done_again(nnunet_folders: Folders, quick: None, done: list[str]) -> None:
    raw, ours = dataset(nnunet_folders["nnUNet_raw"], training="abc"), nnunet_folders["nnUNet_preprocessed"] / NAME
    preprocess()
    again = {}
    for what, (change, _) in CHANGES.items():
        done.clear()
        change(raw, ours)
        preprocess()
        again[what] = "".join(done)
    assert again == {what: cases for what, (_, cases) in CHANGES.items()}
    left = [f"{case}{suffix}" for case in "ab" for suffix in (".b2nd", "_seg.b2nd", ".pkl")]
    assert sorted(p.name for p in (ours / STOCK).iterdir()) == sorted(["hssl", *left])
    assert infer_dataset_class(str(ours / STOCK)) is nnUNetDatasetBlosc2  # nnU-Net refuses files of other endings
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(ours / STOCK))) == ["a", "b"]


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
