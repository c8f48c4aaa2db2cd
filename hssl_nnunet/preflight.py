"""What a training needs of the preprocessed folder, looked for before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hssl_nnunet.errors import HSSLError, listed
from hssl_nnunet.files import read_json
from hssl_nnunet.nnunet_plans import inherited, read_plans
from hssl_nnunet.paths import preprocessed_dir, unlabelled_folder
from hssl_nnunet.plan_schema import SEEDED_SUFFIX
from hssl_nnunet.remedies import corpus_command, preprocess_command, seed_command
from hssl_nnunet.typed_json import parse

SPLITS_FILE, NUM_FOLDS = "splits_final.json", 5  # nnU-Net's
PREPROCESSING = (  # what a preprocessed image follows from, nnU-Net's names
    "transpose_forward",
    "foreground_intensity_properties_per_channel",
    "data_identifier",
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
)


@dataclass(frozen=True, slots=True)
class Fold:
    """A fold of nnU-Net's splits_final.json."""

    train: list[str]
    val: list[str]


@dataclass(frozen=True, slots=True)
class ListedCase:
    """A case of the key `dataset`, which names files that lie anywhere."""

    images: list[str]


@dataclass(frozen=True, slots=True)
class DatasetJson:
    """The part of a preprocessed dataset's dataset.json that we read."""

    file_ending: str
    labels: dict[str, Any]
    dataset: dict[str, ListedCase] = field(default_factory=dict)


def read_dataset(folder: Path) -> tuple[DatasetJson, dict[str, Any]]:
    """Read the dataset.json of a preprocessed dataset.

    Args:
        folder: `nnUNet_preprocessed/<Dataset>`.

    Returns:
        What we read of it, and all of its content.

    Raises:
        HSSLError: the file is missing, is not JSON, or lacks what we read.
    """
    path, remedy = folder / "dataset.json", f"Run `{preprocess_command(folder.name)}` to write it anew."
    content: dict[str, Any] = read_json(path, remedy)
    return parse(DatasetJson, content, path, remedy), content


def data_folder(folder: Path, plans: dict[str, Any], configuration: str) -> Path:
    """Folder of the preprocessed cases of a configuration, which may inherit it from another.

    Args:
        folder: `nnUNet_preprocessed/<Dataset>`.
        plans: content of a plans file.
        configuration: one of its configurations.

    Raises:
        HSSLError: the configuration is missing, or lacks its `data_identifier`.
    """
    path = folder / f"{plans['plans_name']}.json"
    identifier = inherited(plans, configuration, path).get("data_identifier")
    if not identifier:
        raise HSSLError(f"{configuration} of {path} has no `data_identifier`, the folder of its images. Add it.")
    return folder / str(identifier)


def check_labelled(folder: Path, plans: dict[str, Any], configuration: str) -> None:
    """Refuse a configuration that cannot be trained on labelled cases from pretrained weights.

    Args:
        folder: `nnUNet_preprocessed/<Dataset>`.
        plans: content of a plans file.
        configuration: one of its configurations.

    Raises:
        HSSLError: the configuration is missing, a cascade's second stage, or not preprocessed with masks.
    """
    if inherited(plans, configuration, folder / f"{plans['plans_name']}.json").get("previous_stage"):
        raise HSSLError(
            f"{configuration} also reads what the first stage has segmented, which no pretraining has seen: train it "
            f"with nnU-Net alone, `nnUNetv2_train {folder.name} {configuration} 0`. The first stage can be fine-tuned."
        )
    data = data_folder(folder, plans, configuration)
    if data.is_dir():
        return
    command = preprocess_command(folder.name, plans["plans_name"], configuration)
    if data.with_name(unlabelled_folder(data.name)).is_dir() and not any((folder / "gt_segmentations").glob("[!.]*")):
        raise HSSLError(
            f"{folder.name} has no masks: its images alone were preprocessed. Name a dataset that has some, or put "
            f"them into `labelsTr` and run `{command}`."
        )
    raise HSSLError(f"{data} does not exist: this configuration is not preprocessed. Run `{command}`.")


def read_corpus_plans(dataset: str, plans_name: str, configuration: str) -> dict[str, Any]:
    """The plans that a pretraining is started with.

    Raises:
        HSSLError: they are missing, or lack the configuration.
    """
    return _read_plans(dataset, plans_name, configuration, f"Run `{corpus_command(dataset)}` first.")


def read_target_plans(dataset: str, plans_name: str, configuration: str) -> dict[str, Any]:
    """The plans that a training on labelled cases is started with.

    Raises:
        HSSLError: they are missing, lack the configuration, or it is a cascade's second stage or not preprocessed; the
            target was planned anew since they were seeded.
    """
    folder, seeding = preprocessed_dir() / dataset, seed_command(dataset, None, plans_name, configuration)
    own = folder / f"{plans_name.removesuffix(SEEDED_SUFFIX)}.json"
    first = "" if own.is_file() else f"`{preprocess_command(dataset, plans_name, configuration)}`, then "
    remedy = f"Run {first}`{seeding}`."
    plans = _read_plans(dataset, plans_name, configuration, remedy)
    check_labelled(folder, plans, configuration)
    if plans_name.endswith(SEEDED_SUFFIX) and own.is_file():
        _check_as_planned(plans, read_plans(own, remedy), configuration, folder / f"{plans_name}.json", seeding)
    return plans


def _check_as_planned(seeded: Any, own: Any, configuration: str, path: Path, seeding: str) -> None:
    """Check that seeded plans preprocess as the target's own: both use the images that the own ones have made."""
    if configuration not in own["configurations"]:
        return
    if changed := preprocessed_otherwise(seeded, own, configuration, path):
        raise HSSLError(
            f"The target has been planned anew since {path} was seeded: {changed}. A model of these plans would train "
            f"on images unlike those it predicts. Run `{seeding}` again; edited `finetuning` values stay."
        )


def preprocessed_otherwise(then: dict[str, Any], now: dict[str, Any], configuration: str, source: str | Path) -> str:
    """Tell in what two versions of plans preprocess images differently; empty where they do not.

    Args:
        then: content of the earlier plans.
        now: content of the later ones.
        configuration: one that both have.
        source: where they come from, for errors.
    """
    before, after = ({**plans, **inherited(plans, configuration, source)} for plans in (then, now))
    changed = [key for key in PREPROCESSING if before.get(key) != after.get(key)]
    return "; ".join(f"{key} was {before.get(key)!r:.60}, is {after.get(key)!r:.60}" for key in changed)


def _read_plans(dataset: str, plans_name: str, configuration: str, remedy: str) -> dict[str, Any]:
    path = preprocessed_dir() / dataset / f"{plans_name}.json"
    there = ", ".join(sorted(p.stem for p in path.parent.glob("*Plans*.json")))
    plans = read_plans(path, f"Plans there: {there}; choose with -p. Or: {remedy}" if there else remedy)
    inherited(plans, configuration, path)  # is there
    return plans


def check_weights_file(weights: str | None, plans: Path, seeding: str) -> None:
    """Refuse plans whose weights are gone.

    Args:
        weights: the file that the plans name; None = none.
        plans: their file.
        seeding: the command that names other weights.

    Raises:
        HSSLError: the file does not exist.
    """
    if weights is not None and not Path(weights).is_file():
        raise HSSLError(f"{weights}, which {plans} names, does not exist. Put it back, or run `{seeding}`.")


def check_batch(path: Path, configuration: str, num_gpus: int) -> None:
    """Refuse more GPUs than a batch has images, which nnU-Net shares out among them.

    Args:
        path: the plans.
        configuration: one of their configurations.
        num_gpus: GPUs that are to share the training.

    Raises:
        HSSLError: there are more.
    """
    batch_size = inherited(read_plans(path), configuration, path).get("batch_size", num_gpus)
    if num_gpus > batch_size:
        raise HSSLError(
            f"-num_gpus {num_gpus}, but {configuration} of {path} has a `batch_size` of {batch_size}, and each GPU "
            f"needs at least one image of it. Use -num_gpus {batch_size}, or raise `batch_size`."
        )


def check_fold(data: Path, fold: str) -> None:
    """Refuse a fold that nnU-Net could not split off, or would replace by a random split.

    Args:
        data: folder of the preprocessed, labelled cases.
        fold: a number, or `all`.

    Raises:
        HSSLError: fewer cases than folds and no splits of the user's own; a fold that the splits lack, or with cases
            that are not there; damaged splits.
    """
    if fold == "all":
        return
    path, splits = data.parent / SPLITS_FILE, read_folds(data.parent)
    form = f'{path}: [{{"train": [...], "val": [...]}}]'
    cases = {file.stem for file in data.glob("*.pkl")}  # one for each case, whatever its voxels are stored as
    if splits is None and len(cases) < NUM_FOLDS:
        raise HSSLError(f"{len(cases)} cases cannot make nnU-Net's five folds. Use fold `all`, or write {form}.")
    folds = NUM_FOLDS if splits is None else len(splits)
    if int(fold) >= folds:
        raise HSSLError(
            f"There is no fold {fold}, only {', '.join(map(str, range(folds)))}: nnU-Net would train on a random split "
            f"instead. Name one of these, or add it to {form}."
        )
    named = {*splits[int(fold)].train, *splits[int(fold)].val} if splits is not None else set()
    if lacking := sorted(named - cases):
        raise HSSLError(
            f"Fold {fold} of {path} names {len(lacking)} cases that {data} lacks: {listed(lacking)}. Correct the fold, "
            "or preprocess them."
        )


def read_folds(folder: Path) -> list[Fold] | None:
    """The folds of a preprocessed dataset; None before nnU-Net has written its splits_final.json.

    Args:
        folder: `nnUNet_preprocessed/<Dataset>`.

    Raises:
        HSSLError: the file is damaged.
    """
    path, remedy = folder / SPLITS_FILE, "Correct it, or remove it: nnU-Net then splits anew when it trains."
    return parse(list[Fold], read_json(path, remedy), path, remedy) if path.is_file() else None
