"""The cases of a raw dataset: which images, which mask, labelled or not."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hssl_nnunet.corpus.dataset_json import read_dataset_json
from hssl_nnunet.corpus.manifest import MANIFEST
from hssl_nnunet.errors import HSSLError, listed
from hssl_nnunet.paths import dataset_name, nnunet_dirs, preprocessed_dir, raw_dir


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

    @property
    def files(self) -> tuple[Path, ...]:
        """Its images, and the mask where it has one."""
        return self.images if self.mask is None else (*self.images, self.mask)


@dataclass(frozen=True)
class RawDataset:
    """A folder of `nnUNet_raw`.

    Attributes:
        name: `DatasetXXX_Name`.
        folder: the folder.
        dataset_json: content of its dataset.json.
        labelled: cases of imagesTr with a mask; empty if `labels` is {}.
        unlabelled: all other cases of imagesTr, and those of imagesTs.
        stray: visible image files whose name lacks the channel suffix, as `_0000`.
        orphans: masks of labelsTr whose image is not in imagesTr; empty if `labels` is {}.
    """

    name: str
    folder: Path
    dataset_json: dict[str, Any]
    labelled: tuple[Case, ...]
    unlabelled: tuple[Case, ...]
    stray: tuple[Path, ...]
    orphans: tuple[Path, ...]

    @property
    def cases(self) -> tuple[Case, ...]:
        """All cases, the labelled ones first."""
        return self.labelled + self.unlabelled

    @property
    def maskless(self) -> tuple[Case, ...]:
        """Cases of imagesTr that lack a mask, in a dataset that has some."""
        return tuple(c for c in self.unlabelled if self.labelled and c.images[0].parent.name == "imagesTr")

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user may not expect of the cases."""
        masks, names = self.folder / "labelsTr", [c.name for c in self.maskless]
        if self.dataset_json["labels"] and not self.labelled:
            return (
                f"{self.name}: dataset.json names labels, but {masks} holds no mask of an image: its images are "
                "treated as images without masks.",
            )
        if not names:
            return ()
        return (
            f"{self.name}: {len(names)} image(s) of imagesTr have no mask in {masks} and are treated as images without "
            f"masks: {listed(names)}.",
        )


def dataset_id(name: str) -> int:
    """The 4 of `Dataset004_Hippocampus`.

    Raises:
        HSSLError: the name has no number there.
    """
    match = re.match(r"Dataset(\d+)_", name)
    if match is None:
        raise HSSLError(f"'{name}' is not a dataset name as Dataset004_Hippocampus. Rename the folder.")
    return int(match[1])


def visible_files(folder: Path, ending: str) -> list[Path]:
    """Files of a folder by name; none if it is missing. Hidden ones are macOS' attribute files `._name`, not images."""
    return sorted(p for p in folder.glob(f"*{ending}") if not p.name.startswith("."))


def folders_of_id(number: int) -> list[Path]:
    """The folders of datasets with this id, in each of nnU-Net's folders that is set."""
    return [folder for base in nnunet_dirs() for folder in sorted(base.glob(f"Dataset{number:03d}_*"))]


def changed_at(path: Path) -> float:
    """Seconds of the last change of a file's content or place; a copy with an old modification time counts as new."""
    status = path.stat()
    return max(status.st_mtime, status.st_ctime)


def datasets_called(text: str, dataset_names: Sequence[str]) -> list[str]:
    """The datasets that a user may mean by id (`4`, `004`), full name or what follows `DatasetXXX_`, in any case."""
    wanted = str(int(text)) if text.isdecimal() else text.lower()
    return [
        name
        for name in dataset_names
        if wanted in (name.lower(), name.partition("_")[2].lower(), str(dataset_id(name)))
    ]


def read_raw_dataset(dataset_name_or_id: str | int) -> RawDataset:
    """List a dataset's cases; no image is read.

    Raises:
        HSSLError: nnUNet_raw is not set; the dataset is missing there, holds no image, or its dataset.json is wrong.
    """
    base = raw_dir()  # not set is the nearest cause of a dataset that is not found
    name = dataset_name(dataset_name_or_id)
    folder = base / name
    if not folder.is_dir():
        raise _not_raw(name)
    dataset_json = read_dataset_json(folder)
    training, stray = _training_cases(folder, dataset_json)
    test, stray_test = _cases_of(folder / "imagesTs", dataset_json)
    if not training and not test:
        raise _without_images(folder, dataset_json["file_ending"], stray + stray_test)
    labelled, maskless, orphans = _by_mask(folder, dataset_json, training, stray)
    unlabelled = (*(replace(c, mask=None) for c in maskless), *test)
    strays = (*stray, *stray_test)
    return RawDataset(name, folder, dataset_json, tuple(labelled), unlabelled, strays, tuple(orphans))


def _not_raw(name: str) -> HSSLError:
    if (preprocessed_dir() / name / MANIFEST).is_file():
        return HSSLError(f"{name} is a corpus: it holds no images of its own. Name the datasets that it joins instead.")
    return HSSLError(f"{name} is not in {raw_dir()}. Run `hssl convert_msd -i TaskXX_Name` first.")


def _without_images(folder: Path, file_ending: str, stray: list[Path]) -> HSSLError:
    if stray:
        first = stray[0].name
        return HSSLError(
            f"{folder}: the names of all {len(stray)} images, as {first}, lack the channel suffix `_0000`. "
            f"Rename it to {first.removesuffix(file_ending)}_0000{file_ending}, and the others likewise."
        )
    return HSSLError(
        f"{folder / 'imagesTr'} holds no image named <case>_0000{file_ending}. "
        "Put the images there, or correct `file_ending` in dataset.json."
    )


def _training_cases(folder: Path, dataset_json: dict[str, Any]) -> tuple[list[Case], list[Path]]:
    if "dataset" in dataset_json:  # nnU-Net's own way to name files that lie anywhere
        cases = [
            Case(name, tuple(_absolute(folder, i) for i in files["images"]), _absolute(folder, files["label"]))
            for name, files in dataset_json["dataset"].items()
        ]
        return cases, []
    return _cases_of(folder / "imagesTr", dataset_json, folder / "labelsTr")


def _absolute(folder: Path, file: str) -> Path:
    return Path(os.path.normpath(folder.absolute() / os.path.expandvars(file)))


def _cases_of(folder: Path, dataset_json: dict[str, Any], masks: Path | None = None) -> tuple[list[Case], list[Path]]:
    """Cases of a folder by name, and the files whose name is not <case>_0000<file_ending>; hidden files are skipped.

    Four digits that are no channel of dataset.json belong to the case's name, as in `BRATS_0001`; beside all the
    channels they are one too many, and the case is for `check_case` to refuse.
    """
    ending, channels = dataset_json["file_ending"], set(range(len(dataset_json["channel_names"])))
    pattern = re.compile(r"(.+)_(\d{4})" + re.escape(ending))
    files: dict[str, dict[int, Path]] = defaultdict(dict)
    stray = []
    for file in visible_files(folder, ending):
        match = pattern.fullmatch(file.name)
        if match is None:
            stray.append(file)
        else:
            files[match[1]][int(match[2])] = file
    cases = []
    for name, found in sorted(files.items()):
        if found.keys() <= channels or found.keys() >= channels:
            cases.append(Case(name, tuple(found.values()), masks / (name + ending) if masks else None))
        else:
            stray += found.values()
    return cases, stray


def _by_mask(
    folder: Path, dataset_json: dict[str, Any], training: list[Case], stray: list[Path]
) -> tuple[list[Case], list[Case], list[Path]]:
    """Cases with a mask, cases without, and masks without a case."""
    if not dataset_json["labels"]:
        return [], training, []
    if "dataset" in dataset_json:  # a mask that is named and missing is for `check_case` to refuse
        return training, [], []
    ending = dataset_json["file_ending"]
    masks = {p.name: p for p in visible_files(folder / "labelsTr", ending)}
    labelled = [c for c in training if c.name + ending in masks]
    maskless = [c for c in training if c.name + ending not in masks]
    wanted = {c.name + ending for c in labelled} | {file.name for file in stray}  # a stray file is told by itself
    return labelled, maskless, [p for name, p in masks.items() if name not in wanted]
