"""The usual mistakes of a raw folder: each is named, with what repairs it, before an image is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hssl_nnunet.corpus.cases import dataset_id, read_raw_dataset
from hssl_nnunet.errors import HSSLError

NAME = "Dataset031_Thing"
GOOD = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "thing": 1}, "file_ending": ".nii.gz"}


def raw(folders: dict[str, Path], files: tuple[str, ...] = ("imagesTr/a_0000",), **values: Any) -> Path:
    """A dataset of empty files, `values` in its dataset.json."""
    folder = folders["nnUNet_raw"] / NAME
    for file in files:
        path = folder / f"{file}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "dataset.json").write_text(json.dumps(GOOD | values))
    return folder


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("labels", {"0": "background", "1": "thing"}, r'Swap them: {"background": 0, "thing": 1}; `hssl convert_msd'),
        ("labels", {"background": "0"}, r'not {"background": "0"}\. Write 1, without quotes'),
        ("labels", {"background": 0, "thing": 1.0}, r'not {"thing": 1\.0}\. .*without a decimal point'),
        ("labels", {"background": 0, "thing": True}, 'not {"thing": true}'),
        ("labels", {"background": 0, "all": []}, r'not {"all": \[\]}'),
        ("labels", {"background": 0, "all": [1, "2"]}, 'not {"all"'),
        ("labels", {"thing": 1}, 'Write "background": 0; of a dataset without masks, write {}'),
        ("labels", {"Background": 0, "thing": 1}, 'Rename "Background" to "background"'),
        ("labels", {"background": 1}, 'Write "background": 0'),
        ("labels", {"background": [0]}, "expected a background of 0"),
        ("labels", ["background", "thing"], "expected an object of names and values"),
        ("channel_names", ["T1", "T2"], r'Write it as {"0": "T1", "1": "T2"}\.'),
        ("channel_names", {"CT": 0}, r'Write it as {"0": "CT"}\.'),
        ("channel_names", {}, "expected an object of channel numbers and names"),
        ("channel_names", {"0": 7}, "expected an object of channel numbers and names"),
        ("file_ending", 5, r'Write it as "\.nii\.gz"'),
        ("file_ending", "nrrd", r'Write it as "\.nrrd"'),
        ("overwrite_image_reader_writer", "SimpleITKOI", r"SimpleITKIO, .*remove the key"),
        ("overwrite_image_reader_writer", 1, "expected a reader of nnU-Net"),
        ("dataset", {"a": {"images": "a.nii.gz", "label": "b.nii.gz"}}, "a.images: .*list"),
        ("dataset", {"a": {"images": [], "label": "b.nii.gz"}}, "a.images: .*at least 1 item"),
    ],
)
def test_a_wrong_value_is_named_with_its_repair(
    nnunet_folders: dict[str, Path], key: str, value: Any, said: str
) -> None:
    folder = raw(nnunet_folders, **{key: value})
    with pytest.raises(HSSLError, match=f"(?s)`{key}` of {folder / 'dataset.json'} .*{said}"):
        read_raw_dataset(31)


def test_what_is_no_object_or_lacks_keys(nnunet_folders: dict[str, Path]) -> None:
    path = raw(nnunet_folders) / "dataset.json"
    path.write_text("[]")
    with pytest.raises(HSSLError, match=r"holds \[\], expected an object with channel_names, labels, file_ending"):
        read_raw_dataset(31)
    path.write_text('{"labels": {"0": "background"}}')
    with pytest.raises(HSSLError, match=r"lacks the key\(s\) channel_names, file_ending.*convert_msd"):
        read_raw_dataset(31)


@pytest.mark.parametrize(
    "values",
    [
        {"labels": {}},
        {"labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}},
        {"labels": {"background": 0, "1": 1}},
        {"overwrite_image_reader_writer": "None"},
        {"overwrite_image_reader_writer": "NibabelIOWithReorient"},
        {"overwrite_image_reader_writer": "BaseReaderWriter"},  # not listed by nnU-Net, but found by its search
    ],
)
def test_what_nnunet_takes_is_taken(nnunet_folders: dict[str, Path], values: dict[str, Any]) -> None:
    raw(nnunet_folders, **values)
    assert read_raw_dataset(31).dataset_json == GOOD | values


def test_digits_that_are_no_channel_belong_to_the_name(nnunet_folders: dict[str, Path]) -> None:
    images = ("BRATS_0001", "BRATS_0002", "b_0000", "b_0001", "c_0000")
    raw(nnunet_folders, tuple(f"imagesTr/{i}" for i in images))
    dataset = read_raw_dataset(31)
    assert [f.name for f in dataset.stray] == ["BRATS_0001.nii.gz", "BRATS_0002.nii.gz"]
    # beside its one channel b has a second: which of the two is wrong is not for us to say
    assert [(c.name, len(c.images)) for c in dataset.unlabelled] == [("b", 2), ("c", 1)]


def test_a_case_of_four_channels_may_lack_one_but_not_the_suffix(nnunet_folders: dict[str, Path]) -> None:
    images = ("a_0001", "a_0003", "BRATS_0001", "BRATS_0004")
    raw(nnunet_folders, tuple(f"imagesTr/{i}" for i in images), channel_names=dict.fromkeys("0123", "MRI"))
    dataset = read_raw_dataset(31)
    assert [f.name for f in dataset.stray] == ["BRATS_0001.nii.gz", "BRATS_0004.nii.gz"]
    assert [c.name for c in dataset.unlabelled] == ["a"]


def test_a_folder_without_any_suffix(nnunet_folders: dict[str, Path]) -> None:
    raw(nnunet_folders, ("imagesTr/BRATS_0001", "imagesTr/BRATS_0002"))
    with pytest.raises(HSSLError, match=r"all 2 images.*lack the channel suffix `_0000`.*BRATS_0001_0000\.nii\.gz"):
        read_raw_dataset(31)


def test_labels_without_masks_are_noted(nnunet_folders: dict[str, Path]) -> None:
    folder = raw(nnunet_folders)
    (note,) = read_raw_dataset(31).notes
    assert str(folder / "labelsTr") in note and "images without masks" in note
    raw(nnunet_folders, labels={})
    assert read_raw_dataset(31).notes == ()
    raw(nnunet_folders, ("labelsTr/a",))
    assert read_raw_dataset(31).notes == ()


def test_images_without_a_mask_and_masks_without_an_image(nnunet_folders: dict[str, Path]) -> None:
    folder = raw(
        nnunet_folders,
        ("imagesTr/a_0000", "imagesTr/b_0000", "imagesTr/d", "imagesTs/t_0000")
        + ("labelsTr/a", "labelsTr/c", "labelsTr/d", "labelsTr/._b"),
    )
    dataset = read_raw_dataset(31)
    assert [(c.name, c.mask) for c in dataset.labelled] == [("a", folder / "labelsTr" / "a.nii.gz")]
    assert [(c.name, c.mask) for c in dataset.unlabelled] == [("b", None), ("t", None)]
    assert dataset.orphans == (folder / "labelsTr" / "c.nii.gz",)  # d has an image, whose name is wrong
    (note,) = dataset.notes
    assert "1 image(s) of imagesTr have no mask" in note and note.endswith(": b.")
    raw(nnunet_folders, labels={})
    assert read_raw_dataset(31).orphans == ()


def test_masks_that_are_all_called_otherwise(nnunet_folders: dict[str, Path]) -> None:
    raw(nnunet_folders, ("imagesTr/a_0000", "labelsTr/a_seg"))
    dataset = read_raw_dataset(31)
    assert dataset.labelled == () and [c.name for c in dataset.unlabelled] == ["a"]
    assert [p.name for p in dataset.orphans] == ["a_seg.nii.gz"]
    assert "holds no mask of an image" in dataset.notes[0]


def test_an_unset_raw_folder_is_named_first(nnunet_folders: dict[str, Path], unset: Callable[[str], None]) -> None:
    unset("nnUNet_raw")
    with pytest.raises(HSSLError, match="nnUNet_raw is not set"):
        read_raw_dataset(31)


def test_the_id_of_a_name() -> None:
    assert dataset_id("Dataset004_Hippocampus") == 4
    with pytest.raises(HSSLError, match="'Dataset5x_Odd' is not a dataset name"):
        dataset_id("Dataset5x_Odd")
