"""The figures of the page, and in their captions what each one stands on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hssl_nnunet.benchmark import statistics as st
from hssl_nnunet.benchmark.intervals import crossed_interval
from hssl_nnunet.benchmark.pairing import dice_table, shared_seeds
from hssl_nnunet.benchmark.report import figures, tables, training, wording
from hssl_nnunet.benchmark.report.content import Content
from hssl_nnunet.benchmark.report.drawing import ArmStyle

Styles = Mapping[str, ArmStyle]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A figure of the page.

    Attributes:
        title: its heading.
        note: what stands beside the heading.
        svg: the figure.
    """

    title: str
    note: str
    svg: str


def all_panels(content: Content, comparisons: Sequence[st.Comparison], styles: Styles) -> dict[str, object]:
    """Panels of each section; of the differences a set for each baseline."""
    by_dataset = list(enumerate(content.datasets))
    grid = [(f"{i}-{j}", name, b) for i, name in by_dataset for j, b in enumerate(content.budgets(name))]
    paired = [_paired(content, f"paired-{key}", name, b, styles) for key, name, b in grid]
    differences = {
        baseline: [
            panel
            for i, name in by_dataset
            if (panel := _differences(content, f"diff-{baseline}-{i}", name, baseline, comparisons, styles))
        ]
        for baseline in st.BASELINES
    }
    return {
        "dice_panels": [_dice(content, f"dice-{i}", name, styles) for i, name in by_dataset],
        "difference_panels": {baseline: found for baseline, found in differences.items() if found},
        "paired_panels": [p for p in paired if p],
        "curve_panels": [p for key, name, b in grid for p in _curves(content, f"curves-{key}", name, b, styles)],
    }


def _ticks(content: Content, dataset_name: str) -> dict[str, str]:
    """Budget -> `5%` above its number of cases."""
    ticks = {}
    for budget in content.budgets(dataset_name):
        cases = tables.labelled(content.at(dataset_name, budget)).replace("labelled ", "")
        ticks[budget] = f"{budget}\n{cases}" if budget.endswith("%") else cases
    return ticks


def _dice(content: Content, name: str, dataset_name: str, styles: Styles) -> Panel:
    series: dict[str, dict[str, figures.Estimate]] = {}
    for arm in content.arms:
        for budget in content.budgets(dataset_name):
            if runs := content.of(dataset_name, budget, arm):
                dice = dice_table(runs).points[0]  # (seeds, patients)
                estimate = figures.Estimate(float(dice.mean()), *crossed_interval([dice]))
                series.setdefault(arm, {})[budget] = estimate
    ticks = _ticks(content, dataset_name)
    svg = figures.draw_against_budget(name, series, ticks, styles, quantity="Dice on the test patients")
    return Panel(title=dataset_name, note="", svg=svg)


def _differences(
    content: Content,
    name: str,
    dataset_name: str,
    baseline: str,
    comparisons: Sequence[st.Comparison],
    styles: Styles,
) -> Panel | None:
    found = [c for c in comparisons if (c.dataset_name, c.baseline) == (dataset_name, baseline)]
    order = content.budgets(dataset_name)
    series: dict[str, dict[str, figures.Estimate]] = {arm: {} for arm in content.arms}
    for c in sorted(found, key=lambda c: order.index(c.budget)):
        series[c.arm][c.budget] = figures.Estimate(c.difference, c.low, c.high)
    series = {arm: values for arm, values in series.items() if values}
    if not series:
        return None
    quantity = f"Dice points over {baseline}"
    svg = figures.draw_against_budget(
        name, series, _ticks(content, dataset_name), styles, quantity=quantity, zero=baseline
    )
    shared = wording.span((len(c.seeds) for c in found), "shared seed")
    return Panel(title=dataset_name, note=f"over {baseline}, {shared}", svg=svg)


def _paired(content: Content, name: str, dataset_name: str, budget: str, styles: Styles) -> Panel | None:
    ours = content.of(dataset_name, budget, wording.METHOD)
    pairs, told = {}, []
    for baseline in st.BASELINES:
        theirs = content.of(dataset_name, budget, baseline)
        if shared_seeds(ours, theirs):
            table = dice_table(ours, theirs)
            means = table.points.mean(1).T.tolist()  # (patients, 2), over seeds
            pairs[baseline] = {p: (float(a), float(b)) for p, (a, b) in zip(table.patients, means, strict=True)}
            told.append(f"{baseline} on {wording.count(len(table.seeds), 'seed')}")
    if not pairs:
        return None
    svg = figures.draw_paired(name, wording.METHOD, pairs, styles)
    return Panel(title=dataset_name, note=f"{budget}, {', '.join(told)}", svg=svg)


def _curves(content: Content, name: str, dataset_name: str, budget: str, styles: Styles) -> list[Panel]:
    panels = []
    for number, (one, baselines) in enumerate(training.drawn(content, dataset_name, budget)):
        points = {
            arm: {epoch: 100 * dice for epoch, dice in one.by_arm[arm].items()}
            for arm in content.arms
            if arm in one.by_arm
        }
        levels = {b: 100 * level for b in baselines if (level := one.level(b)) is not None}
        svg = figures.draw_curves(f"{name}-{number}", points, styles, levels=levels)
        panels.append(Panel(title=dataset_name, note=f"{budget}, {wording.count(len(one.seeds), 'seed')}", svg=svg))
    return panels
