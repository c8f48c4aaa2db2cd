"""Test cases to look at: where the method loses most against its baseline, the median one, where it gains most."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hssl_nnunet.benchmark.report.drawing import SKY, VERMILION

TRUTH_COLOUR, FIRST_COLOUR, SECOND_COLOUR = "#F0E442", SKY, VERMILION  # bright ones of Okabe and Ito: images are dark
WIDTH_INCHES, DPI = 3.2, 120
MARGIN, LEAST_MARGIN_VOXEL = 0.35, 12  # around what is drawn: share of its size, and at least
LEAST_SIDE_RATIO = 0.5  # of the shorter side of a picture to the longer
SLICE_NAMES = ("axial", "coronal", "sagittal")  # of the axes z, y, x of an array in LPS orientation

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A test case that is worth a look.

    Attributes:
        rank: `worst`, `median` or `best`, by the difference of the two.
        case: the case.
        first: Dice of the method in [0, 1], labels averaged.
        second: Dice of the baseline.
    """

    rank: str
    case: str
    first: float
    second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """One slice of a case, cropped to what is drawn.

    Attributes:
        image: (rows, columns) intensities.
        masks: truth, prediction of the method, of the baseline; (rows, columns) integer labels each.
        aspect: height of a voxel in its widths.
        where: for example `axial slice 12 of 35`.
    """

    image: Array
    masks: tuple[Array, Array, Array]
    aspect: float
    where: str


def choose(first: Mapping[str, float], second: Mapping[str, float]) -> list[Choice]:
    """Worst, median and best case by `first` minus `second`; of equals the one whose name sorts first.

    The median of an even number is the lower one of the middle; of fewer than three cases each is named once.

    Args:
        first: case -> Dice of the method; at least one case.
        second: case -> Dice of the baseline, of the same cases.
    """
    ordered = sorted((first[case] - second[case], case) for case in first)
    best = min(case for d, case in ordered if d == ordered[-1][0])
    ranks = {"worst": ordered[0][1], "median": ordered[(len(ordered) - 1) // 2][1], "best": best}
    chosen: dict[str, str] = {}
    for rank in ("worst", "best", "median"):
        chosen.setdefault(ranks[rank], rank)
    return [
        Choice(rank=chosen[case], case=case, first=first[case], second=second[case])
        for case in dict.fromkeys(ranks.values())
    ]


def read_slice(image: Path, truth: Path, first: Path, second: Path) -> Slice:
    """Read a case and cut the slice that shows most of the truth, across the axis of the coarsest spacing.

    Args:
        image: the image, one channel.
        truth: its mask; `first` and `second` the two predicted masks, all of one geometry.
        first: prediction of the method.
        second: prediction of the baseline.

    Raises:
        ValueError: a file is missing or unreadable, or the geometries differ; it names the file.
    """
    volumes = [_read(path) for path in (image, truth, first, second)]
    shapes = {v.GetSize() for v in volumes}
    if len(shapes) != 1:
        raise ValueError(f"image and masks of {truth.name} differ in shape: {sorted(shapes)}")
    spacing_mm = tuple(reversed(volumes[0].GetSpacing()))  # z, y, x as in the arrays
    arrays = [sitk.GetArrayFromImage(v) for v in volumes]
    axis = max(range(3), key=lambda a: (round(spacing_mm[a], 3), -a))  # isotropic: axial
    index = _richest(arrays[1:], axis)
    flat = [np.take(a, index, axis=axis) for a in arrays]
    height, width = (spacing_mm[a] for a in range(3) if a != axis)
    if axis > 0:  # coronal or sagittal: the head is up
        flat = [f[::-1] for f in flat]
    rows, columns = _window(flat[1:], height / width)
    cut, *masks = (f[rows, columns] for f in flat)
    where = f"{SLICE_NAMES[axis]} slice {index + 1} of {arrays[0].shape[axis]}"
    return Slice(image=cut, masks=(masks[0], masks[1], masks[2]), aspect=height / width, where=where)


def _read(path: Path) -> sitk.Image:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        return sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    except RuntimeError:
        raise ValueError(f"{path} cannot be read as a 3D image") from None


def _richest(masks: list[Array], axis: int) -> int:
    """The slice with most foreground of the first mask that has any; the central one if none has."""
    others = tuple(a for a in range(3) if a != axis)
    for mask in masks:
        counts = np.count_nonzero(mask > 0, axis=others)
        if counts.any():
            return int(np.argmax(counts))
    return int(masks[0].shape[axis]) // 2


def _window(masks: list[Array], aspect: float) -> tuple[slice, slice]:
    """Rows and columns around the foreground of any mask; everything when there is none."""
    shown = np.any([mask > 0 for mask in masks], axis=0)
    if not shown.any():
        return slice(None), slice(None)
    bounds = [np.flatnonzero(shown.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    sizes = [float(high - low + 1) for low, high in bounds]
    wanted = [s + 2 * max(MARGIN * s, LEAST_MARGIN_VOXEL) for s in sizes]
    wanted[0] = max(wanted[0], LEAST_SIDE_RATIO * wanted[1] / aspect)
    wanted[1] = max(wanted[1], LEAST_SIDE_RATIO * wanted[0] * aspect)
    starts = [int(max(0, (low + high + 1 - w) / 2)) for (low, high), w in zip(bounds, wanted, strict=True)]
    stops = [int(np.ceil((low + high + 1 + w) / 2)) for (low, high), w in zip(bounds, wanted, strict=True)]
    return slice(starts[0], stops[0]), slice(starts[1], stops[1])


def draw_slice(shown: Slice, *, prediction: int) -> bytes:
    """A PNG of the slice with the contours of truth and of one prediction, every label outlined.

    Args:
        shown: the slice.
        prediction: 1 the method's, 2 the baseline's.
    """
    rows, columns = shown.image.shape
    height = WIDTH_INCHES * shown.aspect * rows / columns
    with style.context("default", after_reset=True):
        figure = Figure(figsize=(WIDTH_INCHES, height))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        low, high = np.percentile(shown.image, (1, 99))
        axes.imshow(shown.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect="auto")
        axes.axis("off")
        colour = (TRUTH_COLOUR, FIRST_COLOUR, SECOND_COLOUR)[prediction]
        for mask, line, width in ((shown.masks[0], TRUTH_COLOUR, 2.6), (shown.masks[prediction], colour, 1.4)):
            x, y = np.arange(-1, columns + 1), np.arange(-1, rows + 1)
            for value in np.unique(mask[mask > 0]):
                closed = np.pad((mask == value).astype(float), 1)  # a contour also where a label meets the border
                axes.contour(x, y, closed, levels=[0.5], colors=[line], linewidths=width)
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()
