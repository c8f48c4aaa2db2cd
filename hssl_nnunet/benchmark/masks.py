"""The masks of a target: which labels each shows, and its content; a mask is read once."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hssl_nnunet.benchmark.metrics import Label, label_values
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.transfer.weights_file import file_sha256
from hssl_nnunet.typed_json import STRICT, parse, to_json

LABELS_FILE = "labels.json"
READERS = 4  # threads that read masks


@dataclass(frozen=True, kw_only=True, slots=True)
class Mask:
    """A mask.

    Attributes:
        labels: foreground labels or regions with at least one voxel.
        sha256: the file's content.
        stamp: its size in bytes and time of change in ns, when it was read.
    """

    labels: tuple[str, ...]
    sha256: str
    stamp: tuple[int, int]

    __pydantic_config__ = STRICT


def masks_of(folder: Path, preprocessed: Path, data_identifier: str) -> dict[str, Mask]:
    """Case -> mask, of the cases with a mask that are preprocessed; those that have not changed are not read again.

    Args:
        folder: the benchmark's folder, which keeps what was read.
        preprocessed: the dataset's preprocessed folder.
        data_identifier: folder of its preprocessed cases.

    Raises:
        HSSLError: the dataset has no such case, or a mask cannot be read.
    """
    name, dataset_json = preprocessed.name, read_json(preprocessed / "dataset.json")
    ending, there = dataset_json["file_ending"], {p.stem for p in (preprocessed / data_identifier).glob("*.b2nd")}
    paths = {p.name.removesuffix(ending): p for p in sorted((preprocessed / "gt_segmentations").glob(f"*{ending}"))}
    paths = {case: path for case, path in paths.items() if case in there}
    if not paths:
        raise HSSLError(f"{name} has no preprocessed case with a mask. Run `hssl plan_and_preprocess -d ...`.")
    cache = folder / LABELS_FILE
    known = parse(dict[str, dict[str, Any]], read_json(cache), cache) if cache.is_file() else {}
    kept = _unchanged(known.get(name, {}), paths, cache)
    read = _read({case: path for case, path in paths.items() if case not in kept}, label_values(dataset_json), name)
    masks = {case: kept.get(case) or read[case] for case in paths}
    if read or known.get(name, {}).keys() != masks.keys():
        write_json(cache, {**known, name: {case: to_json(mask) for case, mask in masks.items()}})
    return masks


def _unchanged(entries: Mapping[str, object], paths: Mapping[str, Path], source: Path) -> dict[str, Mask]:
    """Masks as they were read; older versions kept a list of labels alone, which says nothing of the file."""
    told = {case: entry for case, entry in entries.items() if isinstance(entry, dict) and case in paths}
    return {
        case: mask for case, mask in parse(dict[str, Mask], told, source).items() if mask.stamp == _stamp(paths[case])
    }


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _read(masks: Mapping[str, Path], values: Mapping[str, Label], what: str) -> dict[str, Mask]:
    def read(path: Path) -> Mask:
        import SimpleITK as sitk

        stamp = _stamp(path)
        try:
            found = np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
        except RuntimeError as error:
            told = str(error).strip().splitlines()[-1]
            raise HSSLError(f"{path} cannot be read: {told} Repair the mask, then preprocess {what} again.") from None
        labels = tuple(name for name, value in values.items() if np.isin(value, found).any())
        return Mask(labels=labels, sha256=file_sha256(path), stamp=stamp)

    with ThreadPoolExecutor(READERS) as pool:
        bar = tqdm(pool.map(read, masks.values()), total=len(masks), desc=what, disable=not sys.stderr.isatty())
        return dict(zip(masks, bar, strict=True))
