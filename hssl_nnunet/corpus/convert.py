"""Medical Segmentation Decathlon (MSD) task folders, converted to nnU-Net's raw form.

The result is that of `nnUNetv2_convert_MSD_dataset`; in addition a missing `imagesTs`, macOS' `._*` files and names
with more than one underscore are accepted, and the target appears whole or not at all.
"""

from __future__ import annotations

import logging
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from tqdm import tqdm

from hssl_nnunet.corpus.cases import folders_of_id, visible_files
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import cannot, folder_beside, read_json, write_json
from hssl_nnunet.paths import DATASET_WORDS, ENV_RAW, raw_dir

logger = logging.getLogger(__name__)

FILE_ENDING = ".nii.gz"
REQUIRED_KEYS = ("modality", "labels")
MSD_ONLY_KEYS = ("modality", "training", "test")


def convert_msd(source: str | Path, dataset_id: int | None = None, *, overwrite: bool = False) -> str:
    """Convert `TaskXX_Name` to `nnUNet_raw/DatasetXXX_Name`.

    3D files are copied byte by byte, 4D files are split into one file a channel. Images of `imagesTs` stay in
    `imagesTs`. A file that cannot be read is copied as it is: `plan_and_preprocess` quarantines and lists it.

    Args:
        source: the MSD folder; a trailing slash does not matter.
        dataset_id: id of the new dataset, 1 to 999; default: the XX of `TaskXX`.
        overwrite: replace an existing dataset of the same name.

    Returns:
        Name of the dataset, as `Dataset004_Hippocampus`.

    Raises:
        HSSLError: `source` is not an MSD folder, a key of its dataset.json is missing, an image has another number of
            channels than dataset.json names, the target exists, or the disk is full.
    """
    source = Path(source).resolve()
    msd_json = _read_msd_json(source)
    task_id, name = _task_of(source)
    target = _free_target(task_id if dataset_id is None else dataset_id, name, overwrite)
    images = visible_files(source / "imagesTr", FILE_ENDING)
    if not images:
        raise HSSLError(f"{source / 'imagesTr'} holds no {FILE_ENDING} image. Check that the task was unpacked whole.")
    dataset_json = _to_nnunet_json(msd_json, len(images), source)
    with _folder_written_whole(target) as folder:
        channels = len(dataset_json["channel_names"])
        _convert_images(images, folder / "imagesTr", channels)
        _convert_images(visible_files(source / "imagesTs", FILE_ENDING), folder / "imagesTs", channels)
        _copy_masks(source, folder, dataset_json)
        write_json(folder / "dataset.json", dataset_json)
    return target.name


def _read_msd_json(source: Path) -> dict[str, Any]:
    if not source.is_dir():
        raise HSSLError(f"{source} is not a folder. Expected an MSD folder as /path/to/Task04_Hippocampus.")
    path = source / "dataset.json"
    content = read_json(path, "Expected an MSD folder: dataset.json, imagesTr and labelsTr.")
    if not isinstance(content, dict):
        raise HSSLError(f"{path} holds a {type(content).__name__}, expected an object with {', '.join(REQUIRED_KEYS)}.")
    if "channel_names" in content or source.name.startswith("Dataset"):
        raise _already_raw(source)
    missing = [key for key in REQUIRED_KEYS if not isinstance(content.get(key), dict)]
    if missing:
        raise HSSLError(f"{path} lacks the object(s) {', '.join(missing)}. Add them as the MSD does.")
    return content


def _already_raw(source: Path) -> HSSLError:
    number = source.name.removeprefix("Dataset").partition("_")[0]
    command = f"hssl plan_and_preprocess -d {int(number) if number.isdecimal() else '...'}"
    told = f"{source} is already in nnU-Net's raw form, no conversion is needed."
    if source.parent == raw_dir().resolve():
        return HSSLError(f"{told} Run `{command}`.")
    link = shlex.join(["ln", "-s", str(source), f"{raw_dir()}/"])
    return HSSLError(f"{told} Copy or link it into {ENV_RAW}: `{link}`, then run `{command}`.")


def _task_of(source: Path) -> tuple[int, str]:
    match = re.fullmatch(r"Task(\d+)_(.+)", source.name)
    if match is None:
        raise HSSLError(f"The folder's name is '{source.name}', expected TaskXX_Name as Task04_Hippocampus. Rename it.")
    if not DATASET_WORDS.fullmatch(match[2]):
        better = re.sub(r"[^A-Za-z0-9_-]+", "_", match[2]).strip("_-") or "Name"
        renamed = shlex.join(["mv", str(source), str(source.with_name(f"Task{match[1]}_{better}"))])
        raise HSSLError(
            f"The name after TaskXX_ is {match[2]!r}, expected letters, digits, _ and -, as a corpus' name has them. "
            f"Rename the folder: `{renamed}`."
        )
    return int(match[1]), match[2]


def _free_target(dataset_id: int, name: str, overwrite: bool) -> Path:
    """The folder to write; an existing one is refused, and so is an id that another dataset has in any folder."""
    if not 1 <= dataset_id <= 999:
        raise HSSLError(f"Dataset id {dataset_id} is not in 1 to 999. Give another one with `-d ID`.")
    target = raw_dir() / f"Dataset{dataset_id:03d}_{name}"
    others = {folder.name for folder in folders_of_id(dataset_id)} - {target.name}
    if others:
        raise HSSLError(f"The id of {target.name} is taken by {', '.join(sorted(others))}. Give another with `-d ID`.")
    if target.exists() and not overwrite:
        raise HSSLError(f"{target} exists. Convert to another id with `-d ID`, or replace it with `--overwrite`.")
    return target


def _to_nnunet_json(msd_json: dict[str, Any], num_training: int, source: Path) -> dict[str, Any]:
    """dataset.json in nnU-Net's form: labels as name -> value, modality as channel_names."""
    result = {key: value for key, value in msd_json.items() if key not in MSD_ONLY_KEYS}
    try:
        labels = {
            ("background" if int(value) == 0 else str(name)): int(value) for value, name in msd_json["labels"].items()
        }
    except (TypeError, ValueError):
        raise HSSLError(
            f"`labels` of {source / 'dataset.json'} must map values to names, got {msd_json['labels']}."
        ) from None
    if len(labels) != len(msd_json["labels"]):
        raise HSSLError(f"`labels` of {source / 'dataset.json'} gives one name to two values: {msd_json['labels']}.")
    result |= {"labels": labels, "numTraining": num_training, "file_ending": FILE_ENDING}
    return result | {"channel_names": msd_json["modality"]}


def _convert_images(files: list[Path], folder: Path, channels: int) -> None:
    if not files:
        return
    folder.mkdir(parents=True)
    for file in tqdm(files, desc=f"Converting {folder.name}", disable=None):
        _convert_image(file, folder, channels)


def _convert_image(file: Path, folder: Path, channels: int) -> None:
    """Write `<case>_0000.nii.gz` (and further channels) of one image."""
    case = file.name.removesuffix(FILE_ENDING)
    try:
        image = _read_if_4d(file, channels)
    except HSSLError:
        raise
    except RuntimeError:  # SimpleITK's only exception for anything unreadable
        logger.warning("%s cannot be read and is copied as it is; `hssl plan_and_preprocess` will quarantine it.", file)
        image = None
    if image is None:
        shutil.copyfile(file, folder / f"{case}_0000{FILE_ENDING}")
        return
    for channel in range(channels):
        sitk.WriteImage(image[:, :, :, channel], str(folder / f"{case}_{channel:04d}{FILE_ENDING}"))


def _read_if_4d(file: Path, channels: int) -> sitk.Image | None:
    """A 4D image, or None for a 3D one, of which only the header is read."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    size = reader.GetSize()
    found = size[3] if len(size) == 4 else 1
    if len(size) not in (3, 4) or found != channels:
        raise HSSLError(
            f"{file} has shape {size} (x, y, z, channels), that is {found} channel(s), but `modality` of "
            f"dataset.json names {channels}. Correct `modality` or the image, then run it again."
        )
    return reader.Execute() if len(size) == 4 else None


def _copy_masks(source: Path, folder: Path, dataset_json: dict[str, Any]) -> None:
    masks = visible_files(source / "labelsTr", FILE_ENDING)
    if not masks:
        if dataset_json["labels"]:
            raise HSSLError(
                f"{source / 'labelsTr'} holds no mask, but dataset.json names labels. Unpack the task whole; for one "
                'without masks, write `"labels": {}` into dataset.json.'
            )
        return
    (folder / "labelsTr").mkdir()
    for mask in masks:
        shutil.copyfile(mask, folder / "labelsTr" / mask.name)


@contextmanager
def _folder_written_whole(target: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `target` that takes its place when the block ends without an error."""
    try:
        with folder_beside(target) as temporary:
            new = temporary / target.name
            new.mkdir()
            yield new
            if target.exists():
                target.rename(temporary / "old")
            new.rename(target)
    except OSError as error:
        raise cannot("write", target, error) from error
