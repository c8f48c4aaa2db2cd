"""Pictures of a pretraining run: curves, embeddings, reconstructions. Written whole, without global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from hssl_nnunet.files import written_whole

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999")
"""Colours that every kind of colour vision tells apart, Okabe & Ito 2008; grey for their pale yellow."""
MARKERS = "os^Dv<>P"
SERIES = {"train": OKABE_ITO[0], "val": OKABE_ITO[3]}


def plot_curves(path: str | Path, curves: dict[str, list[float]]) -> None:
    """Draw each quantity over the epochs, one panel below the other.

    Args:
        path: picture to write; the suffix gives the format.
        curves: one value an epoch, nan where there is none. `train_<x>` and `val_<x>` share the panel `<x>`; any other
            name, such as `learning_rate` or `effective_rank`, has a panel of its own.
    """
    panels: dict[str, dict[str, list[float]]] = {}
    for name, values in curves.items():
        series, _, panel = name.partition("_")
        panels.setdefault(panel if series in SERIES else name, {})[series if series in SERIES else name] = values
    figure = Figure(figsize=(8, 0.6 + 1.9 * max(len(panels), 1)), layout="constrained")
    axes = figure.subplots(max(len(panels), 1), sharex=True, squeeze=False)[:, 0]
    for axis, (panel, lines) in zip(axes, panels.items(), strict=False):
        for name, values in lines.items():
            y = np.asarray(values, dtype=float)
            epochs = np.flatnonzero(np.isfinite(y))  # joined over the epochs that have no value
            marker = "o" if len(epochs) < 30 else None
            axis.plot(epochs, y[epochs], color=SERIES.get(name, "black"), label=name, marker=marker, markersize=3)
        axis.set_title(panel.replace("_", " "), loc="left", fontsize=10)
        axis.grid(alpha=0.3)
        if lines.keys() <= SERIES.keys():
            axis.legend(frameon=False, fontsize=8)
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


def plot_embeddings(
    path: str | Path, points: ArrayLike, tasks: Sequence[str], groups: Sequence[str], shown: str
) -> None:
    """Draw the embeddings in a plane twice: coloured by domain and by group.

    Args:
        path: picture to write; the suffix gives the format.
        points: (N, 2), see `probes.pca_2d`.
        tasks: name of the domain of each point.
        groups: name of the group of each point.
        shown: what the points are, and how many.
    """
    xy = np.asarray(points, dtype=float)
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axis, title, names in zip(figure.subplots(1, 2), ("domain", "group"), (tasks, groups), strict=True):
        for index, name in enumerate(sorted(set(names))):
            chosen = xy[np.asarray(names) == name]
            round_, place = divmod(index, len(OKABE_ITO))
            colour, marker = OKABE_ITO[place], MARKERS[(place + round_) % len(MARKERS)]  # the ninth: another marker
            axis.scatter(*chosen.T, s=28, c=colour, marker=marker, alpha=0.8, linewidths=0, label=name)
        axis.set(title=f"{shown}, by {title}", xlabel="first principal axis", ylabel="second principal axis")
        axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)
    _save(figure, path)


def plot_reconstructions(path: str | Path, rows: Sequence[tuple[str, ArrayLike, ArrayLike, ArrayLike]]) -> None:
    """Draw target, masked input and prediction side by side, one image a row, all in the grey window of its target.

    Args:
        path: picture to write; the suffix gives the format.
        rows: one or more; title, and three arrays (X, Y) or (X, Y, Z) in one unit; of a volume the central slice
            across the first axis is shown. Hidden voxels of the masked input may be nan: drawn in blue.
    """
    slices = [[_central_slice(image) for image in images] for _, *images in rows]
    heights = [row[0].shape[0] / row[0].shape[1] for row in slices]  # in widths of a picture
    figure = Figure(figsize=(7.5, sum(2.4 * h + 0.35 for h in heights) + 0.2), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False, height_ratios=heights)
    grey = colormaps["gray"].with_extremes(bad=OKABE_ITO[0])
    for axes_of_row, images, (title, *_) in zip(axes, slices, rows, strict=True):
        low, high = np.nanpercentile(images[0], (1, 99))
        axes_of_row[0].set_title(title, loc="left", fontsize=8)
        for axis, image, name in zip(axes_of_row, images, ("", "masked input", "prediction"), strict=True):
            axis.imshow(image, cmap=grey, vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_title(name, loc="right", fontsize=8)  # leaves room for the title of the row
    _save(figure, path)


def _central_slice(image: ArrayLike) -> NDArray[Any]:
    array = np.asarray(image, dtype=float)
    return array if array.ndim == 2 else array[len(array) // 2]


def _save(figure: Figure, path: str | Path) -> None:
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:], dpi=120)
