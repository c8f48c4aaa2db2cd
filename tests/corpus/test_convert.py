"""MSD folders to nnU-Net raw: same result as nnU-Net's converter, and its known traps."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from hssl_nnunet.corpus.convert import convert_msd
from hssl_nnunet.errors import HSSLError

NNUNET_FOLDERS = dict[str, Path]


def image(shape: tuple[int, ...], seed: int = 0) -> sitk.Image:
    """Image with a geometry of its own; shape in array order."""
    result = sitk.GetImageFromArray(np.random.default_rng(seed).normal(size=shape).astype(np.float32), isVector=False)
    result.SetSpacing([1.5, 0.5, 2.0, 1.0][: len(shape)])
    result.SetOrigin([-3.0, 4.0, 5.0, 0.0][: len(shape)])
    return result


def task(folder: Path, shape: tuple[int, ...] = (4, 5, 6), **changes: Any) -> Path:
    """MSD task of two training cases and one test case; `changes` overlay dataset.json, None removes a key."""
    for sub, cases in (("imagesTr", "ab"), ("labelsTr", "ab"), ("imagesTs", "c")):
        (folder / sub).mkdir(parents=True)
        for seed, case in enumerate(cases):
            shown = shape[-3:] if sub == "labelsTr" else shape
            sitk.WriteImage(image(shown, seed), str(folder / sub / f"case_{case}.nii.gz"))
            (folder / sub / f"._case_{case}.nii.gz").write_bytes(b"macOS")
    content = {
        "name": "Thing",
        "modality": {str(i): "MRI" for i in range(shape[0] if len(shape) == 4 else 1)},
        "labels": {"0": "background", "1": "thing"},
        "numTraining": 2,
        "training": [],
        "test": [],
    } | changes
    kept = {k: v for k, v in content.items() if v is not None}
    (folder / "dataset.json").write_text(json.dumps(kept))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 5, 6), (2, 4, 5, 6)])
def test_same_as_nnunet(nnunet_folders: NNUNET_FOLDERS, tmp_path: Path, shape: tuple[int, ...]) -> None:
    from nnunetv2.dataset_conversion.convert_MSD_dataset import convert_msd_dataset

    raw = nnunet_folders["nnUNet_raw"]
    source = task(tmp_path / "Task07_Thing", shape)
    assert convert_msd(source) == "Dataset007_Thing"
    ours = files(raw / "Dataset007_Thing")
    convert_msd_dataset(str(source), overwrite_target_id=8, num_processes=1)
    stock = files(raw / "Dataset008_Thing")
    assert json.loads(ours.pop("dataset.json")) == json.loads(stock.pop("dataset.json"))
    assert ours == stock


def test_4d_is_split_with_its_geometry(nnunet_folders: NNUNET_FOLDERS, tmp_path: Path) -> None:
    name = convert_msd(task(tmp_path / "Task07_Thing", (2, 4, 5, 6)))
    channel = sitk.ReadImage(str(nnunet_folders["nnUNet_raw"] / name / "imagesTr" / "case_b_0001.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(channel), sitk.GetArrayFromImage(image((2, 4, 5, 6), 1))[1])
    assert channel.GetSpacing() == (1.5, 0.5, 2.0) and channel.GetOrigin() == (-3.0, 4.0, 5.0)


def test_odd_folders_are_accepted(nnunet_folders: NNUNET_FOLDERS, tmp_path: Path) -> None:
    source = task(tmp_path / "Task07_Left_Thing", test=None, training=None, numTraining=None)
    for file in (source / "imagesTs").iterdir():
        file.unlink()
    (source / "imagesTs").rmdir()
    assert convert_msd(f"{source}/", dataset_id=12) == "Dataset012_Left_Thing"
    folder = nnunet_folders["nnUNet_raw"] / "Dataset012_Left_Thing"
    assert sorted(files(folder)) == [
        "dataset.json",
        "imagesTr/case_a_0000.nii.gz",
        "imagesTr/case_b_0000.nii.gz",
        "labelsTr/case_a.nii.gz",
        "labelsTr/case_b.nii.gz",
    ]
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "thing": 1} and content["numTraining"] == 2
    assert (folder / "imagesTr/case_a_0000.nii.gz").read_bytes() == (source / "imagesTr/case_a.nii.gz").read_bytes()


def test_existing_target_is_kept(nnunet_folders: NNUNET_FOLDERS, tmp_path: Path) -> None:
    source = task(tmp_path / "Task07_Thing")
    target = nnunet_folders["nnUNet_raw"] / convert_msd(source)
    (target / "mine.txt").write_text("work of a person")
    with pytest.raises(HSSLError, match="--overwrite"):
        convert_msd(source)
    assert (target / "mine.txt").exists()
    convert_msd(source, overwrite=True)
    assert not (target / "mine.txt").exists() and (target / "dataset.json").exists()


def test_id_of_another_dataset_is_refused(nnunet_folders: NNUNET_FOLDERS, tmp_path: Path) -> None:
    (nnunet_folders["nnUNet_results"] / "Dataset007_Other").mkdir()
    with pytest.raises(HSSLError, match="taken by Dataset007_Other"):
        convert_msd(task(tmp_path / "Task07_Thing"))


def test_interrupted_conversion_leaves_nothing(
    nnunet_folders: NNUNET_FOLDERS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = task(tmp_path / "Task07_Thing")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hssl_nnunet.corpus.convert._copy_masks", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_msd(source)
    assert os.listdir(nnunet_folders["nnUNet_raw"]) == []  # noqa: PTH208  hidden leftovers count


def test_what_a_killed_conversion_left_is_removed_once_it_is_silent(
    nnunet_folders: NNUNET_FOLDERS, tmp_path: Path
) -> None:
    raw = nnunet_folders["nnUNet_raw"]
    names = (".Dataset007_Thing.7.tmp", ".Dataset007_Thing.8.tmp", ".Dataset008_Thing.7.tmp")
    killed, alive, of_another = (raw / name for name in names)
    for folder in (killed, alive, of_another):
        (folder / "imagesTr").mkdir(parents=True)
        image_file = folder / "imagesTr" / "case_a_0000.nii.gz"
        image_file.write_text("half")
        for path in (folder, folder / "imagesTr", *([] if folder == alive else [image_file])):
            os.utime(path, (0, 0))
    convert_msd(task(tmp_path / "Task07_Thing"))
    assert sorted(raw.iterdir()) == sorted([alive, of_another, raw / "Dataset007_Thing"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": None}, "lacks the object.*modality"),
        ({"labels": None}, "lacks the object.*labels"),
        ({"labels": {"0": "background", "one": "thing"}}, "must map values to names"),
        ({"labels": {"0": "background", "1": "thing", "2": "thing"}}, "one name to two values"),
        ({"modality": {"0": "CT", "1": "PET"}}, "1 channel"),
        ({"channel_names": {"0": "CT"}}, "already in nnU-Net's raw form"),
    ],
)
def test_wrong_dataset_json(
    nnunet_folders: NNUNET_FOLDERS, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(HSSLError, match=message):
        convert_msd(task(tmp_path / "Task07_Thing", **changes))
    assert list(nnunet_folders["nnUNet_raw"].iterdir()) == []


def test_4d_with_wrong_number_of_channels(nnunet_folders: NNUNET_FOLDERS, tmp_path: Path) -> None:
    with pytest.raises(HSSLError, match=r"case_a.*2 channel.*names 3"):
        convert_msd(task(tmp_path / "Task07_Thing", (2, 4, 5, 6), modality={"0": "a", "1": "b", "2": "c"}))


def test_not_a_task(nnunet_folders: NNUNET_FOLDERS, tmp_path: Path) -> None:
    with pytest.raises(HSSLError, match="is not a folder"):
        convert_msd(tmp_path / "Task01_Missing")
    with pytest.raises(HSSLError, match="TaskXX_Name"):
        convert_msd(task(tmp_path / "Thing"))


def test_what_is_raw_already_is_linked_or_left_where_it_is(nnunet_folders: NNUNET_FOLDERS, tmp_path: Path) -> None:
    raw = nnunet_folders["nnUNet_raw"]
    there = task(raw / "Dataset012_Thing")
    with pytest.raises(HSSLError) as error:
        convert_msd(there)
    assert str(error.value).endswith("no conversion is needed. Run `hssl plan_and_preprocess -d 12`.")
    elsewhere = task(tmp_path / "my data" / "Dataset013_Thing")
    with pytest.raises(HSSLError) as error:
        convert_msd(elsewhere)
    command, then = str(error.value).split("`")[1:4:2]
    assert shlex.split(command) == ["ln", "-s", str(elsewhere), f"{raw}/"]
    assert then == "hssl plan_and_preprocess -d 13"


def test_a_name_is_of_letters_and_digits_as_that_of_a_corpus(nnunet_folders: NNUNET_FOLDERS, tmp_path: Path) -> None:
    source = task(tmp_path / "Task12_My task (2)")
    with pytest.raises(HSSLError, match=r"'My task \(2\)', expected letters, digits, _ and -") as error:
        convert_msd(source)
    _, old, new = shlex.split(str(error.value).split("`")[1])
    Path(old).rename(new)
    assert convert_msd(new) == "Dataset012_My_task_2"


def test_unreadable_image_is_left_to_the_quarantine(nnunet_folders: NNUNET_FOLDERS, tmp_path: Path) -> None:
    source = task(tmp_path / "Task07_Thing")
    (source / "imagesTr" / "case_a.nii.gz").write_bytes(b"no gzip")
    folder = nnunet_folders["nnUNet_raw"] / convert_msd(source)
    assert (folder / "imagesTr" / "case_a_0000.nii.gz").read_bytes() == b"no gzip"


def test_real_hippocampus(nnunet_folders: NNUNET_FOLDERS, real_data: Path) -> None:
    name = convert_msd(real_data / "Task04_Hippocampus")
    folder = nnunet_folders["nnUNet_raw"] / name
    assert len(list((folder / "imagesTr").glob("*_0000.nii.gz"))) == len(list((folder / "labelsTr").iterdir())) == 180
