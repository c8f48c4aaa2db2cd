"""All cases of a raw dataset through the checks of `integrity`: which are good, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, recursive_find_reader_writer_by_name

from hssl_nnunet.corpus.cases import Case, RawDataset
from hssl_nnunet.corpus.integrity import Problem, check_case, expectation
from hssl_nnunet.corpus.parallel import map_cases
from hssl_nnunet.errors import unknown_name


def find_reader(dataset: RawDataset) -> type[Any]:
    """nnU-Net's reader class for a dataset: the first one that reads its first readable image, as nnU-Net chooses.

    Raises:
        HSSLError: no reader knows the file ending.
    """
    named = dataset.dataset_json.get("overwrite_image_reader_writer", "None")
    if named != "None":
        return recursive_find_reader_writer_by_name(named)  # type: ignore[no-any-return]
    ending = dataset.dataset_json["file_ending"]
    candidates: list[type[Any]] = [r for r in LIST_OF_IO_CLASSES if ending.lower() in r.supported_file_endings]
    if not candidates:
        known = sorted({e for r in LIST_OF_IO_CLASSES for e in r.supported_file_endings})
        raise unknown_name("file_ending", ending, known)
    for case in dataset.labelled + dataset.unlabelled:
        for candidate in candidates:
            if _reads(candidate, case.images[0]):
                return candidate
    return candidates[0]


def _reads(reader: type[Any], file: Path) -> bool:
    try:
        reader().read_images((str(file),))
    except Exception:  # each reader has exceptions of its own
        return False
    return True


def check_dataset(
    dataset: RawDataset, configurations: Sequence[str], reader: type[Any], num_processes: int
) -> tuple[list[Problem], list[Case], list[Case]]:
    """Check every case of a dataset.

    Returns:
        Problems, good labelled cases, good unlabelled cases.
    """
    check = partial(check_case, expected=expectation(dataset, configurations, reader))
    cases = dataset.labelled + dataset.unlabelled
    found = list(map_cases(check, cases, num_processes, f"Checking {dataset.name}"))
    problems = _stray_files(dataset) + _orphans(dataset) + [p for ps in found for p in ps]
    good = [case for case, ps in zip(cases, found, strict=True) if not ps]
    labelled = [c for c in good if c.mask is not None]
    unlabelled, duplicates = _without_duplicates(dataset, [c for c in good if c.mask is None])
    return problems + duplicates, labelled, unlabelled


def _stray_files(dataset: RawDataset) -> list[Problem]:
    what, ending = "the name lacks the channel suffix `_0000`", dataset.dataset_json["file_ending"]
    stems = [(file, file.name.removesuffix(ending)) for file in dataset.stray]
    return [
        Problem(dataset.name, stem, str(file), what, f"Rename it to {stem}_0000{ending}, or remove it.")
        for file, stem in stems
    ]


def _orphans(dataset: RawDataset) -> list[Problem]:
    ending = dataset.dataset_json["file_ending"]
    stems = [(file, file.name.removesuffix(ending)) for file in dataset.orphans]
    return [
        Problem(
            dataset.name,
            stem,
            str(file),
            "mask without image",
            f"Add imagesTr/{stem}_0000{ending}, give the mask the name of its image, or remove it.",
        )
        for file, stem in stems
    ]


def _without_duplicates(dataset: RawDataset, cases: Sequence[Case]) -> tuple[list[Case], list[Problem]]:
    """Cases of imagesTs that bear the name of a case of imagesTr are problems: one name must mean one image."""
    seen = {c.name for c in dataset.labelled}
    kept, problems = [], []
    for case in cases:
        if case.name in seen:
            what, remedy = "imagesTr holds a case of the same name", "Rename it, or remove it if it is the same image."
            problems.append(Problem(dataset.name, case.name, str(case.images[0]), what, remedy))
        else:
            kept.append(case)
        seen.add(case.name)
    return kept, problems
