"""How figures look: colours of the arms, and SVG that takes its ink from the page, readable in light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Any

import matplotlib as mpl
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from hssl_nnunet.training.pictures import OKABE_ITO

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, _, _ = OKABE_ITO
# colours that stand for the page's own; `svg` puts the CSS value in their place
INK, MUTED, GRID = "#010203", "#040506", "#070809"
CSS_COLOURS = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--grid)"}
PANEL_INCHES = (3.7, 2.75)
SETTINGS = {
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text: small, and readable by a screen reader
    "svg.hashsalt": "hssl",  # the same benchmark gives the same page, byte for byte
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
}
# marker of matplotlib -> its outline in a box of 10 x 10, for the legend in the page
MARKERS = {
    "o": "M1 5a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "s": "M1.5 1.5h7v7h-7z",
    "D": "M5 .5L9.5 5L5 9.5L.5 5z",
    "^": "M5 1L9.2 8.8H.8z",
    "v": "M5 9L.8 1.2H9.2z",
    "P": "M3.5 .8h3v2.7h2.7v3h-2.7v2.7h-3v-2.7h-2.7v-3h2.7z",
    "<": "M1 5L8.8 .8V9.2z",
    ">": "M9 5L1.2 .8V9.2z",
}
COLOURS = (GREEN, PURPLE, ORANGE, SKY)  # of arms that have none of their own
DASHES: tuple[tuple[float, ...], ...] = ((4, 1.5), (1.2, 1.2), (5, 1.2, 1.2, 1.2))  # each round of colours has its own
OWN = {"vanilla": (INK, "s", 1.5), "scratch": (VERMILION, "D", 1.5), "hssl": (BLUE, "o", 2.4)}


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmStyle:
    """How an arm is drawn; colour, marker and dashes each tell it from its neighbours.

    Attributes:
        colour: of Okabe and Ito, or `INK` or `MUTED`.
        marker: of matplotlib, a key of `MARKERS`.
        dashes: lengths on and off in line widths; empty = solid.
        width: line width in points.
    """

    colour: str
    marker: str
    dashes: tuple[float, ...] = ()
    width: float = 1.5

    @property
    def line(self) -> dict[str, Any]:
        """How matplotlib draws its line."""
        dashes = (0, self.dashes or (1, 0))
        return {"color": self.colour, "marker": self.marker, "linestyle": dashes, "linewidth": self.width}

    @property
    def css(self) -> str:
        """The colour in the page."""
        return CSS_COLOURS.get(self.colour, self.colour)

    @property
    def outline(self) -> str:
        """The marker as an SVG path in a box of 10 x 10."""
        return MARKERS[self.marker]

    @property
    def dash_array(self) -> str:
        """The dashes for SVG, in its units."""
        return " ".join(f"{self.width * d:g}" for d in self.dashes) or "none"


def arm_styles(arms: Sequence[str]) -> dict[str, ArmStyle]:
    """Style of each arm; `vanilla`, `scratch` and `hssl` have their own, the others take turns."""
    styles = {name: ArmStyle(colour=c, marker=m, width=w) for name, (c, m, w) in OWN.items()}
    others = [arm for arm in arms if arm not in OWN]
    colours = cycle(COLOURS)
    markers = cycle(("^", "v", "P", "<", ">", "o", "s", "D"))
    dashes = (DASHES[i // len(COLOURS) % len(DASHES)] for i in range(len(others)))
    for arm, colour, marker, dash in zip(others, colours, markers, dashes, strict=False):
        styles[arm] = ArmStyle(colour=colour, marker=marker, dashes=dash)
    return {arm: styles[arm] for arm in arms}


@contextmanager
def panel(size_inches: tuple[float, float] = PANEL_INCHES) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes in the style of the page, whatever style was set before."""
    with style.context("default", after_reset=True), mpl.rc_context(SETTINGS):
        figure = Figure(figsize=size_inches, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def svg(figure: Figure, name: str, alt: str) -> str:
    """A figure as an `<svg>` element to stand in HTML; call it inside `panel`.

    Args:
        figure: the figure.
        name: unique in the page; goes before every id, since ids of several figures would clash.
        alt: what the figure shows, for who cannot see it.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"('[\w ]+', )+sans-serif", "system-ui, sans-serif", text)
    for colour, css in CSS_COLOURS.items():
        text = text.replace(colour, css)
    size = re.search(r'viewBox="[^"]+"', text)
    assert size is not None, "matplotlib writes a viewBox"
    body = text[text.index(">") + 1 :]
    return f'<svg {size[0]} role="img" aria-label="{escape(alt)}">{body}'
