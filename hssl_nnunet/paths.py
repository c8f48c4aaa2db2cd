"""Folders: our two resource folders, and nnU-Net's three (raw, preprocessed, results)."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path

from hssl_nnunet.errors import HSSLError

ENV_RAW, ENV_PREPROCESSED, ENV_RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
ENV_TRAINERS = "nnUNet_extTrainer"
FINAL_CHECKPOINT = "checkpoint_final.pth"  # what nnU-Net writes once a training has ended
WEIGHTS_FILE = "hssl.safetensors"  # what a pretraining writes after it
DATASET_WORDS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # what follows DatasetXXX_ in a name of ours


def trainers_dir() -> Path:
    """Folder of the trainer classes that nnU-Net finds through `nnUNet_extTrainer`."""
    return Path(str(files("hssl_nnunet.trainers")))


def plans_dir() -> Path:
    """Folder of the presets, defaults and hierarchies that ship with the package."""
    return Path(str(files("hssl_nnunet.plans")))


def nnunet_dir(variable: str) -> Path:
    """Folder that one of nnU-Net's environment variables names.

    Raises:
        HSSLError: the variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise HSSLError(f"{variable} is not set. Run `export {variable}=/path/to/{variable}` (see `hssl doctor`).")
    return Path(value)


def nnunet_dirs() -> list[Path]:
    """Those of nnU-Net's three folders whose variable is set."""
    return [Path(os.environ[v]) for v in (ENV_RAW, ENV_PREPROCESSED, ENV_RESULTS) if os.environ.get(v)]


def raw_dir() -> Path:
    """nnU-Net's raw data folder."""
    return nnunet_dir(ENV_RAW)


def preprocessed_dir() -> Path:
    """nnU-Net's folder of preprocessed data and plans."""
    return nnunet_dir(ENV_PREPROCESSED)


def results_dir() -> Path:
    """nnU-Net's folder of trained models."""
    return nnunet_dir(ENV_RESULTS)


def model_folder(root: Path, dataset: str, trainer: str, plans_name: str, configuration: str) -> Path:
    """nnU-Net's folder of a trained model below a folder of results: that of its folds, `fold_0` or `fold_all`."""
    return root / dataset / f"{trainer}__{plans_name}__{configuration}"


def dataset_name(dataset_name_or_id: str | int, remedy: str = "Run `hssl convert_msd -i TaskXX_Name` first.") -> str:
    """Resolve `4`, `"004"` or `"Dataset004_Hippocampus"` to the dataset's full name, as nnU-Net does.

    Looks in nnU-Net's three folders, as nnU-Net does, and names the folders searched when nothing is found.

    Args:
        dataset_name_or_id: what the user typed.
        remedy: the sentence that tells how to get the dataset; added to the error.

    Raises:
        HSSLError: no dataset, or more than one, has this id.
    """
    text = str(dataset_name_or_id)
    prefix = text if text.startswith("Dataset") else f"Dataset{int(text):03d}_" if text.isdecimal() else None
    if prefix is None:
        raise HSSLError(f"'{text}' is neither a dataset id (4) nor a dataset name (Dataset004_Hippocampus).")
    bases = nnunet_dirs()
    if not bases:
        raise HSSLError(f"None of {ENV_RAW}, {ENV_PREPROCESSED}, {ENV_RESULTS} is set. Run `hssl doctor`.")
    folders = [p for b in bases if b.is_dir() for p in b.iterdir() if p.is_dir()]
    found = {p.name for p in folders if _matches(p.name, prefix)}
    if len(found) == 1:
        return found.pop()
    places = ", ".join(map(str, bases))
    if not found:
        unset = [v for v in (ENV_RAW, ENV_PREPROCESSED, ENV_RESULTS) if not os.environ.get(v)]
        told = f" {', '.join(unset)} {'is' if len(unset) == 1 else 'are'} not set (see `hssl doctor`)." if unset else ""
        raise HSSLError(f"Dataset '{text}' was not found in {places}.{told} {_misnamed(folders, prefix) or remedy}")
    raise HSSLError(f"Dataset id {text} is ambiguous: {', '.join(sorted(found))} (in {places}). Rename all but one.")


def _matches(folder: str, prefix: str) -> bool:
    return folder.startswith(prefix) if prefix.endswith("_") else folder == prefix


def _misnamed(folders: list[Path], prefix: str) -> str:
    """What to rename where a folder has the id of `DatasetXXX_`, but no name after it, or another number of digits."""
    number = prefix.removeprefix("Dataset").partition("_")[0]
    if not number.isdecimal():
        return ""
    near = re.compile(rf"Dataset0*{int(number)}(?:_(?P<name>.*))?")
    found = [(p, match["name"]) for p in sorted(folders) if (match := near.fullmatch(p.name))]
    right = [(p, f"Dataset{int(number):03d}_{name or 'Name'}") for p, name in found]
    renamed = [f"Rename {p} to {name}." for p, name in right if p.name != name]
    return f"nnU-Net wants DatasetXXX_Name. {' '.join(renamed)}" if renamed else ""


def unlabelled_folder(data_identifier: str) -> str:
    """Name of the folder of preprocessed images without masks, beside nnU-Net's own `data_identifier` folder.

    Stock training reads only `data_identifier`, hence never sees these images.
    """
    return f"{data_identifier}_unlabelled"


def add_trainers_to_environment() -> None:
    """Append our trainers folder to `nnUNet_extTrainer`, so that nnU-Net's finder, and its children, see it."""
    known = [p for p in os.environ.get(ENV_TRAINERS, "").split(os.pathsep) if p]
    ours = str(trainers_dir())
    if ours not in known:
        os.environ[ENV_TRAINERS] = os.pathsep.join([*known, ours])
