"""The curves of the page, one small panel each, so that they stay readable side by side and on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hssl_nnunet.benchmark.report.drawing import INK, MUTED, ArmStyle, panel, svg

DODGE = 0.09  # between arms at one budget, in distances of budgets


class Estimate(NamedTuple):
    """A value with its 95 % interval, in Dice points; the ends may be nan."""

    value: float
    low: float
    high: float


Series = Mapping[str, Mapping[str, Estimate]]
"""Arm -> budget -> estimate; budgets may be missing."""


def draw_against_budget(
    name: str,
    series: Series,
    budgets: Mapping[str, str],
    styles: Mapping[str, ArmStyle],
    *,
    quantity: str,
    zero: str | None = None,
) -> str:
    """Draw one line an arm over the label budgets, with intervals.

    Args:
        name: unique in the page.
        series: the estimates; one arm at least.
        budgets: budget -> its label below the axis, ascending.
        styles: of the arms.
        quantity: label of the axis.
        zero: what the line at 0 stands for; None draws none.
    """
    places = {budget: i for i, budget in enumerate(budgets)}
    with panel() as (figure, axes):
        for index, (arm, estimates) in enumerate(series.items()):
            shift = DODGE * (index - (len(series) - 1) / 2)
            _line(axes, [places[b] + shift for b in estimates], list(estimates.values()), styles[arm])
        if zero is not None:
            axes.axhline(0, color=INK, linewidth=1)
        axes.set(ylabel=quantity, xlim=(-0.5, len(budgets) - 0.5))
        axes.set_xticks(range(len(budgets)), list(budgets.values()))
        axes.grid(visible=False, axis="x")
        told = [
            f"{arm} {', '.join(f'{e.value:.1f} at {b}' for b, e in values.items())}" for arm, values in series.items()
        ]
        return svg(figure, name, f"{quantity} at each label budget: {'; '.join(told)}.")


def _line(axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], look: ArmStyle) -> None:
    values, low, high = np.array(estimates).T
    axes.errorbar(x, values, yerr=np.abs([low - values, high - values]), fmt="none", ecolor=look.colour, elinewidth=1)
    axes.plot(x, values, **look.line)


def draw_paired(
    name: str, method: str, baselines: Mapping[str, Mapping[str, tuple[float, float]]], styles: Mapping[str, ArmStyle]
) -> str:
    """Draw one point a patient: Dice of a baseline to the right, of the method upwards; above the line the method wins.

    Args:
        name: unique in the page.
        method: the arm on the vertical axis.
        baselines: arm on the horizontal axis -> patient -> (Dice of the method, of the baseline) in Dice points.
        styles: of the arms.
    """
    values = np.array([v for pairs in baselines.values() for v in pairs.values()])  # (N, 2)
    low, high = max(-2.0, float(values.min()) - 3), min(102.0, float(values.max()) + 3)
    with panel((3.3, 3.1)) as (figure, axes):
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1)
        for arm, pairs in baselines.items():
            ours, theirs = np.array(list(pairs.values())).T
            look = styles[arm]
            axes.scatter(
                theirs, ours, s=22, marker=look.marker, facecolors="none", edgecolors=look.colour, linewidths=1.1
            )
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set(xlabel=f"Dice of {' or '.join(baselines)}", ylabel=f"Dice of {method}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
        told = [
            f"{method} is above {arm} in {sum(a > b for a, b in pairs.values())} of {len(pairs)} patients"
            for arm, pairs in baselines.items()
        ]
        return svg(figure, name, f"Dice of each patient: {'; '.join(told)}.")


def draw_curves(
    name: str,
    curves: Mapping[str, Mapping[int, float]],
    styles: Mapping[str, ArmStyle],
    *,
    levels: Mapping[str, float],
) -> str:
    """Draw test Dice along the training, one line an arm.

    Args:
        name: unique in the page.
        curves: arm -> epoch -> mean Dice over seeds in Dice points; one epoch at least.
        styles: of the arms.
        levels: arms whose final Dice is drawn as a dotted level, and that Dice.
    """
    with panel() as (figure, axes):
        for arm, curve in curves.items():
            axes.plot(list(curve), list(curve.values()), **styles[arm].line)
        for arm, level in levels.items():
            axes.axhline(level, color=styles[arm].colour, linewidth=1, linestyle=(0, (1, 2)))
        axes.set(xlabel="epoch", ylabel="Dice on the test cases")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        told = [f"{arm} {list(c.values())[0]:.1f} to {list(c.values())[-1]:.1f}" for arm, c in curves.items()]
        return svg(figure, name, f"Dice on the test cases from the first to the last epoch drawn: {', '.join(told)}.")
