"""Which of a target's cases pretraining has already seen."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from hssl_nnunet.corpus.fingerprint import CACHE_FILE, read_cache
from hssl_nnunet.errors import listed
from hssl_nnunet.paths import ENV_RAW
from hssl_nnunet.preflight import DatasetJson, read_dataset, read_folds
from hssl_nnunet.transfer.weights_file import WeightsMetadata

CHANNEL_SUFFIX = re.compile(r"_\d{4}$")


def seen_cases(
    metadata: WeightsMetadata,
    dataset_name: str,
    cases: Iterable[str],
    hashes: Mapping[str, Collection[str]],
) -> list[str]:
    """Cases of a target that were among the images of a pretraining.

    A case was seen if pretraining had the case of this name in this dataset, or an image of the same content under
    whatever name. Of weights whose images are not known, it counts as seen if they were learned from this dataset.

    Args:
        metadata: what the weights were learned from.
        dataset_name: nnU-Net's dataset name of the target.
        cases: case identifiers of the target, for example those of a validation fold.
        hashes: case -> content hashes of its channels; a case that is missing is compared by name only.

    Returns:
        The seen cases, sorted.
    """
    if metadata.images is None:
        return sorted(cases) if dataset_name in {domain.dataset_name for domain in metadata.domains} else []
    names = {image.case for image in metadata.images if image.dataset_name == dataset_name}
    contents = {image.content_hash for image in metadata.images}
    return sorted({case for case in cases if case in names or not contents.isdisjoint(hashes.get(case, ()))})


def validation_cases(folder: Path) -> list[str]:
    """Cases of a preprocessed dataset that may validate a model.

    Args:
        folder: `nnUNet_preprocessed/<Dataset>`.

    Returns:
        The validation cases of all folds of `splits_final.json`; before nnU-Net has written that file, every case with
        a mask, for its cross-validation lets each validate once.

    Raises:
        HSSLError: `splits_final.json` or `dataset.json` is damaged.
    """
    folds = read_folds(folder)
    if folds is not None:
        return sorted({case for fold in folds for case in fold.val})
    ending = read_dataset(folder)[0].file_ending
    return sorted(p.name.removesuffix(ending) for p in (folder / "gt_segmentations").glob(f"*{ending}"))


def content_hashes(folder: Path) -> dict[str, list[str]]:
    """Case -> content hashes of its channels, as `hssl corpus` has measured them; empty if it never has.

    A damaged cache counts as none: the next `hssl corpus` writes it anew.

    Args:
        folder: `nnUNet_preprocessed/<Dataset>`.
    """
    measured = read_cache(folder / CACHE_FILE)
    if not measured:
        return {}
    dataset, hashes = read_dataset(folder)[0], dict[str, list[str]]()
    cases = _cases_of_files(dataset, folder.name)
    for file, entry in measured.items():
        case = cases.get(file) or CHANNEL_SUFFIX.sub("", Path(file).name.removesuffix(dataset.file_ending))
        hashes.setdefault(case, []).extend(channel.content_hash for channel in entry.channels)
    return hashes


def _cases_of_files(dataset: DatasetJson, name: str) -> dict[str, str]:
    """File -> case, where dataset.json lists the files: their names then say nothing of the case."""
    raw = Path(os.environ.get(ENV_RAW, "")).absolute() / name
    return {
        os.path.normpath(raw / os.path.expandvars(image)): case
        for case, files in dataset.dataset.items()
        for image in files.images
    }


def leakage_notes(metadata: WeightsMetadata, dataset_name: str, folder: Path) -> list[str]:
    """Warn of validation cases that pretraining has seen; empty when there are none.

    Where not every case's content is known, a note says that only names were compared.

    Args:
        metadata: what the weights were learned from.
        dataset_name: nnU-Net's dataset name of the target.
        folder: `nnUNet_preprocessed/<Dataset>`.
    """
    cases, hashes = validation_cases(folder), content_hashes(folder)
    seen = seen_cases(metadata, dataset_name, cases, hashes)
    if metadata.images is None:
        of_this = f"of this very dataset, possibly of all its {len(cases)} validation cases" if seen else "not known"
        return [f"which images the imported weights have seen is {of_this}: {metadata.origin}."]
    notes = []
    if seen:
        notes.append(
            f"pretraining saw the images, never the masks, of {len(seen)} of {len(cases)} validation cases of "
            f"{dataset_name}: {listed(seen)}. Scores on them are transductive; for a clean comparison leave them out "
            "with `hssl corpus --exclude FILE` and pretrain again."
        )
    if not set(cases) <= hashes.keys():
        notes.append(
            f"pretraining saw {'no other' if seen else 'no'} validation case of {dataset_name} by name; copies under "
            f"other names were not looked for, because the folder's {CACHE_FILE} (written by `hssl corpus`) does not "
            "hold all of them."
        )
    return notes
