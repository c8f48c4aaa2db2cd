"""The method and the baselines with few labels against a baseline with the most."""

from __future__ import annotations

from collections.abc import Iterable

from hssl_nnunet.benchmark import statistics as st
from hssl_nnunet.benchmark.label_gap import LabelGap, label_gaps
from hssl_nnunet.benchmark.report import wording
from hssl_nnunet.benchmark.report.content import Content
from hssl_nnunet.benchmark.report.tables import Group


def against_most(content: Content) -> list[Group]:
    """Arm and budget -> (where, Dice points to the baseline with the most labels, interval, shared seeds)."""
    groups: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for gap in _shown(content):
        key = f"{gap.arm}, {gap.budget}", f"minus {gap.baseline}, {gap.most}"
        groups.setdefault(key, []).append(_row(gap))
    return [Group(title=title, note=note, rows=rows) for (title, note), rows in groups.items()]


def sentences(content: Content) -> list[str]:
    """For each budget and baseline, how far the method and the baseline itself are from the most labels."""
    means: dict[tuple[str, str, str], dict[str, LabelGap]] = {}
    for gap in _shown(content):
        means.setdefault((gap.baseline, gap.budget, gap.most), {}).setdefault(gap.arm, gap)  # the mean comes first
    return [_sentence(*key, gaps) for key, gaps in means.items() if wording.METHOD in gaps]


def _shown(content: Content) -> Iterable[LabelGap]:
    """The method beside each baseline, the fewest labels first."""
    budgets, shown = content.budgets(), (wording.METHOD, *st.BASELINES)
    gaps = [g for g in label_gaps(content.records) if g.arm in (wording.METHOD, g.baseline)]
    return sorted(gaps, key=lambda g: (st.BASELINES.index(g.baseline), budgets.index(g.budget), shown.index(g.arm)))


def _sentence(baseline: str, budget: str, most: str, gaps: dict[str, LabelGap]) -> str:
    gap, itself = gaps[wording.METHOD], gaps.get(baseline)
    alone = " over patients alone" if max(map(len, gap.seeds)) == 1 else ""
    side = "below" if gap.difference < 0 else "above"
    own = ""
    if itself and (itself.datasets, itself.seeds) == (gap.datasets, gap.seeds):
        own = f"; {baseline} itself is at {wording.signed(itself.difference)} there"
    return (
        f"{wording.METHOD} with {wording.labels(budget)} is {wording.points(abs(gap.difference))} Dice points {side} "
        f"{baseline} with {wording.labels(most)} ({wording.LEVEL}{alone} {wording.interval(gap.low, gap.high)}; "
        f"{wording.basis(gap.seeds)}){own}."
    )


def _row(gap: LabelGap) -> tuple[str, str, str, str]:
    where = gap.datasets[0] if len(gap.datasets) == 1 else f"mean of {len(gap.datasets)} datasets"
    ends = wording.marked_interval(gap.low, gap.high, gap.seeds)
    return where, wording.signed(gap.difference), ends, wording.numbers(map(len, gap.seeds))
