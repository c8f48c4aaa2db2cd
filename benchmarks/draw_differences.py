"""Draw what `compare_reports.py` has found: a line for each arm and target, with its interval and its seeds.

    python benchmarks/draw_differences.py "seeded=a.json" "rival=b.json" --title TITLE --out docs/results.svg

Every file is a comparison with the same second side, of the same targets. The mean over the targets comes first. A
large mark is the mean, its bar the 95 % interval, small marks are the seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hssl_nnunet.benchmark.report.drawing import CSS_COLOURS, MUTED, ArmStyle, arm_styles, panel
from hssl_nnunet.files import read_json, written_whole

INK = "#6e7781"  # a picture of its own has no page to take its ink from: a grey that stands on white and on black
ROW, GAP = 0.2, 0.2  # inches of an arm, and between targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--title", required=True, help="what the differences are")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    arms = {name: read_json(Path(path))["targets"] for name, _, path in (text.partition("=") for text in args.arms)}
    draw(arms, args.title, args.out)


def draw(arms: dict[str, dict[str, Any]], title: str, path: Path) -> None:
    """Write the picture, whole or not at all.

    Args:
        arms: name -> target, or `mean` -> what `compare_reports.py` has found; the first arm is drawn as the method.
        title: what the differences are.
        path: the SVG.
    """
    rows = ["mean", *(name for name in next(iter(arms.values())) if name != "mean")]
    styles = dict(zip(arms, arm_styles(["hssl", *list(arms)[1:]]).values(), strict=True))
    with panel((7.2, len(rows) * (len(arms) * ROW + GAP) + 0.8)) as (figure, axes):
        for row, target in enumerate(rows):
            for line, (name, found) in enumerate(arms.items()):
                at = row * (len(arms) * ROW + GAP) + line * ROW
                _line(axes, at, found[target], styles[name], name if target == "mean" else None)
        middle = [row * (len(arms) * ROW + GAP) + (len(arms) - 1) * ROW / 2 for row in range(len(rows))]
        axes.set_yticks(middle, [name.partition("_")[2] or f"{name} of {len(rows) - 1}" for name in rows])
        axes.get_yticklabels()[0].set_fontweight("bold")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", alpha=0.3)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.invert_yaxis()
        axes.set_xlabel(title)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        _save(figure, path)


def _line(axes: Axes, at: float, found: dict[str, Any], style: ArmStyle, label: str | None) -> None:
    axes.plot([found["low"], found["high"]], [at, at], color=style.colour, linewidth=style.width)
    seeds = [ours - theirs for ours, theirs in zip(*found.get("dice", [[], []]), strict=True)]
    axes.plot(seeds, [at] * len(seeds), color=style.colour, marker="|", markersize=8, linestyle="")
    mark = {"color": style.colour, "marker": style.marker, "markersize": 7, "linestyle": ""}
    axes.plot([found["difference"]], [at], label=label, **mark)


def _save(figure: Figure, path: Path) -> None:
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = temporary.read_text(encoding="utf-8")
        for colour in CSS_COLOURS:
            text = text.replace(colour, INK)
        temporary.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
