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


def data_folder(folder: Path, plans: dict[str, Any], configuration: str) -> Path:
    """Folder of the preprocessed cases of a configuration, which may inherit it from another.

    Args:
        folder: `nnUNet_preprocessed/<Dataset>`.
        plans: content of a plans file.
        configuration: one of its configurations.
    """
    entry = plans["configurations"][configuration]
    while "data_identifier" not in entry:
        entry = plans["configurations"][entry["inherits_from"]]
    return folder / str(entry["data_identifier"])


def read_corpus_plans(dataset: str, plans_name: str, configuration: str) -> dict[str, Any]:
    """The plans that a pretraining is started with.

    Raises:
        HSSLError: they are missing, or lack the configuration.
    """
    return _read_plans(dataset, plans_name, configuration, f"Run `{corpus_command(dataset)}` first.")


def read_target_plans(dataset: str, plans_name: str, configuration: str) -> dict[str, Any]:
    """The plans that a training on labelled cases is started with.

    Raises:
        HSSLError: they are missing, lack the configuration, or this is not preprocessed.
    """
    folder, seeding = preprocessed_dir() / dataset, seed_command(dataset, None, plans_name, configuration)
    preprocessing = preprocess_command(dataset, plans_name, configuration)
    planned = (folder / f"{plans_name.removesuffix(SEEDED_SUFFIX)}.json").is_file()
    remedy = f"Run `{seeding}`." if planned else f"Run `{preprocessing}`, then `{seeding}`."
    plans = _read_plans(dataset, plans_name, configuration, remedy)
    data = data_folder(folder, plans, configuration)
    if not data.is_dir():
        raise HSSLError(f"{data} does not exist: this configuration is not preprocessed. Run `{preprocessing}`.")
    return plans


def _read_plans(dataset: str, plans_name: str, configuration: str, remedy: str) -> dict[str, Any]:
    path = preprocessed_dir() / dataset / f"{plans_name}.json"
    there = ", ".join(sorted(p.stem for p in path.parent.glob("*Plans*.json")))
    plans = read_plans(path, f"Plans there: {there}; choose with -p. Or: {remedy}" if there else remedy)
    if configuration not in plans["configurations"]:
        raise unknown_name(f"configuration of {path}", configuration, plans["configurations"])
    return plans


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
