"""Checks of raw images and masks, one case at a time: what is wrong, in which file, and what repairs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hssl_nnunet.corpus.cases import Case
from hssl_nnunet.corpus.whole_file import DamagedFileError, cause_of, too_large, voxels_are_finite
from hssl_nnunet.files import read_json, remove_file, write_json
from hssl_nnunet.paths import preprocessed_dir
from hssl_nnunet.typed_json import parse

QUARANTINE_FILE = "hssl_quarantine.json"
EXIT_QUARANTINED = 3  # done, but something had to be left out
TOLERANCE = 1e-3  # of spacing (relative) and of direction cosines: headers are stored as float32
EXPORT_AGAIN = "Copy or export it again."
AGAIN_OR_REMOVE = "Export the image again, or remove the case."
BY_BACKGROUND = "Replace them by the value of the background."
ORIGIN_TOLERANCE = 0.1  # voxels: less is rounding, more is a shift between image and mask

Finding = tuple[str, str]  # what, remedy


@dataclass(frozen=True)
class Problem:
    """One reason why a case cannot be used: what was found and expected in which file, and what repairs it."""

    dataset: str
    case: str
    file: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.dataset} {self.case}: {self.what}. {self.remedy} ({self.file})"


@dataclass(frozen=True)
class Expectation:
    """What each case of a dataset must fulfil; small, so that it travels to worker processes.

    Attributes:
        dataset: `DatasetXXX_Name`.
        reader: nnU-Net's reader class for the dataset's files.
        channels: number of channels in dataset.json.
        label_values: values that a mask may hold.
        needs_3d: whether a 3D configuration is requested.
        clipped: channels that nnU-Net clips to the intensities of what is labelled, so that no fill value matters.
    """

    dataset: str
    reader: type[Any]
    channels: int
    label_values: frozenset[int]
    needs_3d: bool
    clipped: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Grid:
    """Geometry of a file; shape and spacing in array order (z, y, x), origin and direction as SimpleITK gives them."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...] | None
    direction: tuple[float, ...] | None


def label_values(labels: Mapping[str, int | Sequence[int]]) -> frozenset[int]:
    """Values that dataset.json allows in a mask: labels, members of regions, and `ignore`."""
    groups = [[v] if isinstance(v, int) else list(v) for v in labels.values()]
    return frozenset(v for group in groups for v in group)


def check_case(case: Case, expected: Expectation) -> list[Problem]:
    """Problems of one case; empty = it can be preprocessed. Holds one channel at a time, never raises for bad data."""
    found: list[tuple[Path, Finding]] = []
    grids: list[_Grid] = []
    channels = 0
    for file in case.images:
        findings, grid, count = _check_image(file, expected, channels)
        channels += count
        if grid is not None:
            findings += _against_first(grid, grids, expected)
            grids.append(grid)
        found += [(file, finding) for finding in findings]
    if len(grids) == len(case.images) and channels != expected.channels:
        found.append((case.images[0], channel_finding(channels, expected.channels)))
    if case.mask is not None:
        image = grids[0] if grids else None
        found += [(case.mask, finding) for finding in _check_mask(case.mask, image, expected)]
    return [Problem(expected.dataset, case.name, str(file), *finding) for file, finding in found]


def channel_finding(found: int, expected: int) -> Finding:
    """What is wrong with a case that has another number of channels than dataset.json names, and the remedy."""
    what = f"{found} channel(s), but dataset.json names {expected}"
    if found < expected:
        return what, "Add the missing channel or correct channel_names."
    return what, "Correct channel_names; if the files are cases, their names lack the channel suffix `_0000`: add it."


def write_quarantine(dataset: str, problems: Sequence[Problem]) -> None:
    """Persist the problems of a dataset in its preprocessed folder; without problems the file is removed."""
    path = preprocessed_dir() / dataset / QUARANTINE_FILE
    if problems:
        write_json(path, [asdict(p) for p in problems])
    else:
        remove_file(path)


def read_quarantine(dataset: str) -> list[Problem]:
    """Problems that the last `plan_and_preprocess` of a dataset found; empty if there were none.

    Raises:
        HSSLError: the file is damaged.
    """
    path = preprocessed_dir() / dataset / QUARANTINE_FILE
    remedy = f"Run `hssl plan_and_preprocess -d {dataset}` again, with the options of the last time: it writes it anew."
    return parse(list[Problem], read_json(path, remedy), path, remedy) if path.is_file() else []


def _read(file: Path, reader: type[Any]) -> tuple[npt.NDArray[np.float32] | None, _Grid | None, list[Finding]]:
    """Voxels (C, Z, Y, X) and geometry of a file, or what is wrong with it."""
    if not file.is_file():
        return None, None, [("the file is missing", "Add it, or remove the case.")]
    try:
        finite = voxels_are_finite(file)
        data, properties = reader().read_images((str(file),))
    except DamagedFileError as error:
        return None, None, [(f"the file {error}", EXPORT_AGAIN)]
    except Exception as error:  # each reader has exceptions of its own for damaged files
        return None, None, [(f"the file cannot be read: {cause_of(error)}", EXPORT_AGAIN)]
    sitk_stuff = properties.get("sitk_stuff", {})
    grid = _Grid(
        tuple(data.shape[1:]), tuple(properties["spacing"]), sitk_stuff.get("origin"), sitk_stuff.get("direction")
    )
    if finite and np.isfinite(data).all():
        return data, grid, []
    return data, grid, [("the file holds NaN or infinite voxels", BY_BACKGROUND)]


def _check_image(file: Path, expected: Expectation, first: int) -> tuple[list[Finding], _Grid | None, int]:
    """Findings, geometry and number of channels of one image file, which begins with the case's channel `first`."""
    data, grid, findings = _read(file, expected.reader)
    if data is None:
        return findings, None, 0
    for index, channel in enumerate(data, first):
        low, high = float(channel.min()), float(channel.max())
        if low == high:
            findings.append((f"every voxel of the image has the value {low:g}", AGAIN_OR_REMOVE))
            break
        if index not in expected.clipped and (largest := too_large(low, high)):
            findings.append((f"the image {largest}", BY_BACKGROUND))
            break
    return findings, grid, len(data)


def _against_first(grid: _Grid, before: Sequence[_Grid], expected: Expectation) -> list[Finding]:
    """Geometry of an image file against the case's first one, and against the requested configurations."""
    if before:
        return _compare(grid, before[0], "the first channel", "Resample the channels onto one grid.")
    if expected.needs_3d and min(grid.shape) == 1:
        what = f"the image is 2D, shape {grid.shape} (z, y, x), in a 3D configuration"
        return [(what, "Run with `-c 2d`, or remove the case.")]
    return []


def _compare(grid: _Grid, other: _Grid, name: str, remedy: str) -> list[Finding]:
    if grid.shape != other.shape:
        return [(f"shape {grid.shape} (z, y, x), but {name} has {other.shape}", remedy)]
    tolerances = {  # unit, relative and absolute tolerance
        "spacing": (" mm (z, y, x)", TOLERANCE, 0.0),
        "origin": (" mm (x, y, z)", 0.0, ORIGIN_TOLERANCE * min(grid.spacing)),
        "direction": ("", 0.0, TOLERANCE),
    }
    findings = []
    for measure, (unit, relative, absolute) in tolerances.items():
        got, wanted = getattr(grid, measure), getattr(other, measure)
        if got is None or wanted is None:  # not every reader tells
            continue
        if len(got) != len(wanted) or not np.allclose(got, wanted, relative, absolute):
            findings.append((f"{measure} {_short(got)}{unit}, but {name} has {_short(wanted)}", remedy))
    return findings


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"


def _check_mask(file: Path, image: _Grid | None, expected: Expectation) -> list[Finding]:
    data, grid, findings = _read(file, expected.reader)
    if data is None or grid is None:
        return findings
    if len(data) != 1:
        findings.append((f"the mask has {len(data)} channels, expected 1", "Export it as a single-channel image."))
    if image is not None:
        findings += _compare(grid, image, "the image", "Resample the mask onto the image's grid, or copy its header.")
    values = np.unique(data)
    unknown = sorted(float(v) for v in values if np.isfinite(v) and float(v) not in expected.label_values)
    if unknown:
        shown = ", ".join(f"{v:g}" for v in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        what = f"the mask holds value(s) {shown}, but dataset.json knows {sorted(expected.label_values)}"
        findings.append((what, "Correct the mask, or add the label to dataset.json."))
    return findings
