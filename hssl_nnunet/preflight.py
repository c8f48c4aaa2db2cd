"""What a training needs of the preprocessed folder, looked for before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hssl_nnunet.errors import HSSLError, unknown_name
from hssl_nnunet.files import read_json
from hssl_nnunet.nnunet_plans import read_plans
from hssl_nnunet.paths import preprocessed_dir
from hssl_nnunet.plan_schema import SEEDED_SUFFIX
from hssl_nnunet.remedies import corpus_command, preprocess_command, seed_command

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


def data_folder(folder: Path, plans: dict[str, Any], configuration: str) -> Path:
    """Folder of the preprocessed cases of a configuration, which may inherit it from another.

    Args:
        folder: `nnUNet_preprocessed/<Dataset>`.
        plans: content of a plans file.
        configuration: one of its configurations.
    """
    return folder / str(_resolved(plans, configuration)["data_identifier"])


def _resolved(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """A configuration with what it inherits from others."""
    entry: dict[str, Any] = plans["configurations"][configuration]
    parent = entry.get("inherits_from")
    return entry if parent is None else {**_resolved(plans, parent), **entry}


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
    preprocessing = preprocess_command(dataset, plans_name, configuration)
    own = folder / f"{plans_name.removesuffix(SEEDED_SUFFIX)}.json"
    remedy = f"Run `{seeding}`." if own.is_file() else f"Run `{preprocessing}`, then `{seeding}`."
    plans = _read_plans(dataset, plans_name, configuration, remedy)
    if _resolved(plans, configuration).get("previous_stage"):
        raise HSSLError(
            f"{configuration} also reads what the first stage has segmented, which no pretraining has seen: train it "
            f"with nnU-Net alone, `nnUNetv2_train {dataset} {configuration} 0`. The first stage can be fine-tuned."
        )
    data = data_folder(folder, plans, configuration)
    if not data.is_dir():
        raise HSSLError(f"{data} does not exist: this configuration is not preprocessed. Run `{preprocessing}`.")
    if plans_name.endswith(SEEDED_SUFFIX) and own.is_file():
        _check_as_planned(plans, read_plans(own, remedy), configuration, folder / f"{plans_name}.json", seeding)
    return plans


def _check_as_planned(seeded: Any, own: Any, configuration: str, path: Path, seeding: str) -> None:
    """Check that seeded plans preprocess as the target's own: both use the images that the own ones have made."""
    if configuration not in own["configurations"]:
        return
    then, now = ({**plans, **_resolved(plans, configuration)} for plans in (seeded, own))
    changed = [key for key in PREPROCESSING if then.get(key) != now.get(key)]
    if changed:
        told = "; ".join(f"{key} was {then.get(key)!r:.60}, is {now.get(key)!r:.60}" for key in changed)
        raise HSSLError(
            f"The target has been planned anew since {path} was seeded: {told}. A model of these plans would train on "
            f"images unlike those it predicts. Run `{seeding}` again; edited `finetuning` values stay."
        )


def _read_plans(dataset: str, plans_name: str, configuration: str, remedy: str) -> dict[str, Any]:
    path = preprocessed_dir() / dataset / f"{plans_name}.json"
    there = ", ".join(sorted(p.stem for p in path.parent.glob("*Plans*.json")))
    plans = read_plans(path, f"Plans there: {there}; choose with -p. Or: {remedy}" if there else remedy)
    if configuration not in plans["configurations"]:
        raise unknown_name(f"configuration of {path}", configuration, plans["configurations"])
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
    batch_size = _resolved(read_plans(path), configuration).get("batch_size", num_gpus)
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
        HSSLError: fewer cases than folds and no splits of the user's own, or a fold that the splits lack.
    """
    if fold == "all":
        return
    splits = data.parent / SPLITS_FILE
    form = f'{splits}: [{{"train": [...], "val": [...]}}]'
    cases = sum(1 for _ in data.glob("*.pkl"))  # one for each case, whatever its voxels are stored as
    if not splits.is_file() and cases < NUM_FOLDS:
        raise HSSLError(f"{cases} cases cannot make nnU-Net's five folds. Use fold `all`, or write {form}.")
    folds = len(read_json(splits)) if splits.is_file() else NUM_FOLDS
    if int(fold) >= folds:
        raise HSSLError(
            f"There is no fold {fold}, only {', '.join(map(str, range(folds)))}: nnU-Net would train on a random split "
            f"instead. Name one of these, or add it to {form}."
        )
