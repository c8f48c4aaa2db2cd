"""The picture of a corpus: spacing against field of view, one colour a group, one marker a domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from hssl_nnunet.corpus.fingerprint import ImageFingerprint
from hssl_nnunet.files import written_whole

# Okabe and Ito 2008, distinguishable with any colour vision; the yellow is left out, too pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


def draw_fingerprint(
    path: str | Path, domains: Mapping[str, Sequence[ImageFingerprint]], groups: Mapping[str, Sequence[str]]
) -> None:
    """Write a PNG with one point an image, in the colour of its domain's finest group.

    The bar of a domain spans its median finest to coarsest spacing.
    """
    figure = Figure(figsize=(8.5, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = dict(zip(dict.fromkeys(groups[name][0] for name in domains), cycle(COLOURS), strict=False))
    for (name, images), marker in zip(domains.items(), cycle(MARKERS), strict=False):
        _draw_domain(axes, images, label=f"{name} ({groups[name][0]})", colour=colours[groups[name][0]], marker=marker)
    axes.set(xscale="log", yscale="log", ylabel="field of view (mm), geometric mean of the three axes")
    axes.set_xlabel("spacing (mm), geometric mean of the three axes; bar: median finest to coarsest")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.7)))  # labels between decades while they fit
        axis.set_tick_params(which="both", labelsize=8)
    axes.grid(which="both", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_domain(axes: Axes, images: Sequence[ImageFingerprint], *, label: str, colour: str, marker: str) -> None:
    spacings = np.array([i.spacing_mm for i in images])  # (images, 3), mm
    fields = np.array([i.field_of_view_mm for i in images])
    x, y = (np.exp(np.log(values).mean(axis=1)) for values in (spacings, fields))
    finest, coarsest = np.median(spacings.min(axis=1)), np.median(spacings.max(axis=1))
    axes.plot([finest, coarsest], [np.median(y)] * 2, color=colour, marker="|", alpha=0.6, zorder=1)
    axes.scatter(x, y, s=26, c=colour, marker=marker, alpha=0.5, linewidths=0.5, edgecolors="white", label=label)
