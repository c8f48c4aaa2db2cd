"""All cases of a raw dataset through the checks of `integrity`: which are good, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, recursive_find_reader_writer_by_name
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

from hssl_nnunet.corpus.cases import Case, RawDataset
from hssl_nnunet.corpus.integrity import Expectation, Problem, check_case, label_values
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
    for case in dataset.cases:
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
    expected = Expectation(
        dataset=dataset.name,
        reader=reader,
        channels=len(dataset.dataset_json["channel_names"]),
        label_values=label_values(dataset.dataset_json["labels"]),
        needs_3d=any(c.startswith("3d") for c in configurations),
        clipped=_clipped(dataset),
    )
    check = partial(check_case, expected=expected)
    found = list(map_cases(check, dataset.cases, num_processes, f"Checking {dataset.name}"))
    good = [case for case, ps in zip(dataset.cases, found, strict=True) if not ps]
    labelled = [c for c in good if c.mask is not None]
    unlabelled, twins = _without_twins(dataset.labelled, [c for c in good if c.mask is None])
    what, remedy = "imagesTr holds a case of the same name", "Rename it, or remove it if it is the same image."
    problems = [*_misnamed(dataset), *(p for ps in found for p in ps)]
    problems += [Problem(dataset.name, c.name, str(c.images[0]), what, remedy) for c in twins]
    return problems, labelled, unlabelled


def _clipped(dataset: RawDataset) -> frozenset[int]:
    """CT channels; without labels their statistics would be those of all voxels, fill values too."""
    names = dataset.dataset_json["channel_names"].items() if dataset.labelled else ()
    return frozenset(int(channel) for channel, name in names if get_normalization_scheme(name) is CTNormalization)


def _misnamed(dataset: RawDataset) -> list[Problem]:
    """Images without the channel suffix, and masks without an image."""
    ending = dataset.dataset_json["file_ending"]
    suffix = "the name lacks the channel suffix `_0000`", "Rename it to {image}, or remove it."
    alone = "mask without image", "Add imagesTr/{image}, give the mask the name of its image, or remove it."
    named = [(file, file.name.removesuffix(ending), suffix) for file in dataset.stray]
    named += [(file, file.name.removesuffix(ending), alone) for file in dataset.orphans]
    return [
        Problem(dataset.name, stem, str(file), what, remedy.format(image=f"{stem}_0000{ending}"))
        for file, stem, (what, remedy) in named
    ]


def _without_twins(labelled: Sequence[Case], unlabelled: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Unlabelled cases, and those of imagesTs that bear the name of one of imagesTr: one name must mean one image."""
    first = {c.name: c for c in reversed((*labelled, *unlabelled))}
    return [c for c in unlabelled if first[c.name] is c], [c for c in unlabelled if first[c.name] is not c]
