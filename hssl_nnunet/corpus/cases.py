"""The cases of a raw dataset: which images, which mask, labelled or not."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json
from hssl_nnunet.paths import dataset_name, raw_dir


@dataclass(frozen=True)
class Case:
    """One image with its channels.

    Attributes:
        name: name without channel suffix and file ending.
        images: one file a channel, in the order of the channels.
        mask: the mask's file, which may be missing on disk; None = an image without a mask.
    """

    name: str
    images: tuple[Path, ...]
    mask: Path | None


@dataclass(frozen=True)
class RawDataset:
    """A folder of `nnUNet_raw`.

    Attributes:
        name: `DatasetXXX_Name`.
        folder: the folder.
        dataset_json: content of its dataset.json.
        labelled: cases of imagesTr with a mask; empty if `labels` is {} or labelsTr is missing or empty.
        unlabelled: all other cases of imagesTr, and those of imagesTs.
        stray: visible image files whose name lacks the channel suffix, as `_0000`.
    """

    name: str
    folder: Path
    dataset_json: dict[str, Any]
    labelled: tuple[Case, ...]
    unlabelled: tuple[Case, ...]
    stray: tuple[Path, ...]


def read_raw_dataset(dataset_name_or_id: str | int) -> RawDataset:
    """List a dataset's cases; no image is read.

    Raises:
        HSSLError: the dataset is missing in nnUNet_raw, holds no image, or its dataset.json lacks a key.
    """
    name = dataset_name(dataset_name_or_id)
    folder = raw_dir() / name
    if not folder.is_dir():
        raise HSSLError(f"{name} is not in {raw_dir()}. Run `hssl convert_msd -i TaskXX_Name` first.")
    dataset_json = _read_dataset_json(folder)
    training, stray = _training_cases(folder, dataset_json)
    test, stray_test = _cases_of(folder / "imagesTs", dataset_json["file_ending"])
    if not training and not test:
        raise HSSLError(
            f"{folder / 'imagesTr'} holds no image named <case>_0000{dataset_json['file_ending']}. "
            "Put the images there, or correct `file_ending` in dataset.json."
        )
    labelled = training if dataset_json["labels"] and _has_masks(folder, dataset_json) else []
    unlabelled = test if labelled else [Case(c.name, c.images, None) for c in training] + test
    return RawDataset(name, folder, dataset_json, tuple(labelled), tuple(unlabelled), tuple(stray + stray_test))


def _read_dataset_json(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    content = read_json(path, "nnU-Net needs it; `hssl convert_msd` writes one.")
    missing = [
        k for k in ("channel_names", "labels", "file_ending") if not isinstance(content, dict) or k not in content
    ]
    if missing:
        raise HSSLError(f"{path} lacks the key(s) {', '.join(missing)}. Add them, or run `hssl convert_msd` again.")
    return dict(content)


def _training_cases(folder: Path, dataset_json: dict[str, Any]) -> tuple[list[Case], list[Path]]:
    if "dataset" in dataset_json:  # nnU-Net's own way to name files that lie anywhere
        listed = dataset_json["dataset"].items()
        cases = [
            Case(name, tuple(_absolute(folder, i) for i in files["images"]), _absolute(folder, files["label"]))
            for name, files in listed
        ]
        return cases, []
    return _cases_of(folder / "imagesTr", dataset_json["file_ending"], folder / "labelsTr")


def _absolute(folder: Path, file: str) -> Path:
    return Path(os.path.normpath(folder.absolute() / os.path.expandvars(file)))


def _cases_of(folder: Path, file_ending: str, masks: Path | None = None) -> tuple[list[Case], list[Path]]:
    """Cases of a folder by name, and the files whose name is not <case>_0000<file_ending>; hidden files are skipped."""
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(file_ending))
    files: dict[str, list[Path]] = defaultdict(list)
    stray = []
    for file in sorted(folder.glob(f"*{file_ending}")):
        match = pattern.fullmatch(file.name)
        if file.name.startswith("."):
            continue
        if match is None:
            stray.append(file)
        else:
            files[match[1]].append(file)
    return [Case(n, tuple(f), masks / (n + file_ending) if masks else None) for n, f in sorted(files.items())], stray


def _has_masks(folder: Path, dataset_json: dict[str, Any]) -> bool:
    if "dataset" in dataset_json:
        return True
    return any(not p.name.startswith(".") for p in (folder / "labelsTr").glob(f"*{dataset_json['file_ending']}"))
