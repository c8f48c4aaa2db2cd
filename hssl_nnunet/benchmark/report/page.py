"""`hssl benchmark report`: from a benchmark's folder to one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import hssl_nnunet
from hssl_nnunet.benchmark import statistics as st
from hssl_nnunet.benchmark.intervals import crossed_interval
from hssl_nnunet.benchmark.report import figures, gallery, rivals, tables, wording
from hssl_nnunet.benchmark.report.cases import FIRST_COLOUR, SECOND_COLOUR, TRUTH_COLOUR
from hssl_nnunet.benchmark.report.content import Content, not_run, read_content
from hssl_nnunet.benchmark.report.drawing import ArmStyle, arm_styles
from hssl_nnunet.benchmark.report.numbers import numbers
from hssl_nnunet.benchmark.report.surfaces import surfaces
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import write_json, written_whole

PAGE_FILE = "report.html"
TEMPLATE = "template.html.j2"
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


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a benchmark: one file that opens from a disk, without a network; its numbers beside it as JSON.

    Args:
        folder: the benchmark's folder.
        output: the file to write; None takes `report.html` in the folder.

    Returns:
        The file.

    Raises:
        HSSLError: no run has ended, a file has the wrong form, records that cannot be compared, or jinja2 is missing.
    """
    content = read_content(folder)
    text = render(content)
    path = output or folder / PAGE_FILE
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(path.with_suffix(".json"), numbers(content))
    return path


def render(content: Content) -> str:
    """The page as HTML; whatever comes from a file is escaped.

    Raises:
        HSSLError: see `write_report`.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise HSSLError(f'{error}. The report needs it: run `pip install "hssl_nnunet[benchmark]"`.') from error
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text: str = environment.get_template(TEMPLATE).render(_values(content))
    return text


def _values(content: Content) -> dict[str, Any]:
    """Every value of the template."""
    comparisons, overall = st.compare_all(content.records), st.overall(content.records)
    styles = arm_styles(content.arms)
    return {
        "content": content,
        "facts": content.facts,
        "styles": styles,
        "method": wording.METHOD,
        "baselines": st.BASELINES,
        "margin": st.MARGIN,
        "version": hssl_nnunet.__version__,
        "answers": wording.answers(overall, comparisons, content.budgets()),
        "tallies": [t for b in st.BASELINES if (t := wording.tally(comparisons, b))],
        "results": tables.results(content, comparisons),
        "pooled": tables.pooled(content, overall, comparisons),
        "rivals": rivals.rivals(content),
        "rival_columns": rivals.columns(content),
        "missing": not_run(content),
        "grid_unknown": [k for k in ("datasets", "budgets", "arms", "seeds") if not getattr(content.facts, k)],
        "compared_with": _compared_with(comparisons),
        "reaches": {b: rows for b in st.BASELINES if (rows := tables.reaches(content, b))},
        "surfaces": surfaces(content),
        "costs": tables.costs(content),
        "pretrainings": tables.pretrainings(content),
        "learned_columns": list(tables.LEARNED),
        "learned": tables.learned(content),
        "galleries": gallery.galleries(content),
        "contours": {"truth": TRUTH_COLOUR, "method": FIRST_COLOUR, "baseline": SECOND_COLOUR},
        "embeddings": gallery.embeddings(content),
        "transfers": tables.transfers(content),
        "environment": tables.environment({**content.facts.about, **content.facts.settings}),
        **_panels(content, comparisons, styles),
    }


def _compared_with(comparisons: list[st.Comparison]) -> str:
    """The first baseline that arms are compared with; one that was not run gives way to the next."""
    there = {c.baseline for c in comparisons}
    return next((b for b in st.BASELINES if b in there), st.BASELINES[0])


def _panels(content: Content, comparisons: list[st.Comparison], styles: Styles) -> dict[str, list[Panel]]:
    by_dataset = list(enumerate(content.datasets))
    grid = [(f"{i}-{j}", name, b) for i, name in by_dataset for j, b in enumerate(content.budgets(name))]
    paired = [_paired(content, f"paired-{key}", name, b, styles) for key, name, b in grid]
    curves = [_curves(content, f"curves-{key}", name, b, styles) for key, name, b in grid]
    return {
        "dice_panels": [_dice(content, f"dice-{i}", name, styles) for i, name in by_dataset],
        "difference_panels": [
            p for i, name in by_dataset if (p := _differences(content, f"diff-{i}", name, comparisons, styles))
        ],
        "paired_panels": [p for p in paired if p],
        "curve_panels": [p for p in curves if p],
    }


def _ticks(content: Content, dataset_name: str) -> dict[str, str]:
    """Budget -> `5%` above its number of cases."""
    ticks = {}
    for budget in content.budgets(dataset_name):
        records = [r for r in content.records if (r.dataset_name, r.budget) == (dataset_name, budget)]
        cases = tables.labelled(records).replace("labelled ", "")
        ticks[budget] = f"{budget}\n{cases}" if budget.endswith("%") else cases
    return ticks


def _dice(content: Content, name: str, dataset_name: str, styles: Styles) -> Panel:
    series: dict[str, dict[str, figures.Estimate]] = {}
    for arm in content.arms:
        for budget in content.budgets(dataset_name):
            if runs := content.of(dataset_name, budget, arm):
                dice = st.dice_table(runs).points[0]  # (seeds, patients)
                low, high = crossed_interval([dice])
                estimate = figures.Estimate(value=float(dice.mean()), low=low, high=high)
                series.setdefault(arm, {})[budget] = estimate
    ticks = _ticks(content, dataset_name)
    svg = figures.draw_against_budget(name, series, ticks, styles, quantity="Dice on the test patients")
    return Panel(title=dataset_name, note="", svg=svg)


def _differences(
    content: Content, name: str, dataset_name: str, comparisons: list[st.Comparison], styles: Styles
) -> Panel | None:
    baseline = _compared_with(comparisons)
    series: dict[str, dict[str, figures.Estimate]] = {arm: {} for arm in content.arms}
    order = content.budgets(dataset_name)
    for c in sorted(comparisons, key=lambda c: order.index(c.budget) if c.budget in order else -1):
        if (c.dataset_name, c.baseline) == (dataset_name, baseline):
            series[c.arm][c.budget] = figures.Estimate(value=c.difference, low=c.low, high=c.high)
    series = {arm: estimates for arm, estimates in series.items() if estimates}
    if not series:
        return None
    svg = figures.draw_against_budget(
        name, series, _ticks(content, dataset_name), styles, quantity=f"Dice points over {baseline}", zero=baseline
    )
    return Panel(title=dataset_name, note="", svg=svg)


def _paired(content: Content, name: str, dataset_name: str, budget: str, styles: Styles) -> Panel | None:
    ours = content.of(dataset_name, budget, wording.METHOD)
    seeds = {r.seed for r in ours}
    pairs = {}
    for baseline in st.BASELINES:
        theirs = content.of(dataset_name, budget, baseline)
        if seeds.intersection(r.seed for r in theirs):
            table = st.dice_table(ours, theirs)
            means = table.points.mean(1).T.tolist()  # (patients, 2), over seeds
            pairs[baseline] = {p: (float(a), float(b)) for p, (a, b) in zip(table.patients, means, strict=True)}
    if not pairs:
        return None
    svg = figures.draw_paired(name, wording.METHOD, pairs, styles)
    return Panel(title=dataset_name, note=budget, svg=svg)


def _curves(content: Content, name: str, dataset_name: str, budget: str, styles: Styles) -> Panel | None:
    curves: dict[str, dict[int, float]] = {}
    for arm in content.arms:
        runs = [{e.epoch: 100 * e.dice for e in r.epochs} for r in content.of(dataset_name, budget, arm)]
        shared = sorted(set.intersection(*map(set, runs))) if runs else []
        if shared:
            curves[arm] = {epoch: fmean(run[epoch] for run in runs) for epoch in shared}
    if not curves:
        return None
    levels = {baseline: list(curves[baseline].values())[-1] for baseline in st.BASELINES if baseline in curves}
    return Panel(title=dataset_name, note=budget, svg=figures.draw_curves(name, curves, styles, levels=levels))
