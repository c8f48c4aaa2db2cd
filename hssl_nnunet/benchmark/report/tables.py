"""The tables of the page: rows of text, every number from the records or from the statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hssl_nnunet.benchmark import statistics as st
from hssl_nnunet.benchmark.records import RunRecord
from hssl_nnunet.benchmark.report import wording
from hssl_nnunet.benchmark.report.content import Content
from hssl_nnunet.benchmark.report.facts import STATUSES


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """An arm against a baseline, as text.

    Attributes:
        value: difference in Dice points.
        interval: its 95 % interval.
        alone: whether the interval, or that of a dataset in it, is over patients alone: one shared seed.
        basis: number of shared seeds; `4 / 3`, of datasets and seeds, where they are pooled.
        equal_length: whether both were fine-tuned for as many steps.
        p: p after Holm; empty where there is none.
        established: `gain`, `loss` or empty.
        tally: wins, ties and losses, as `3 / 1 / 0`; empty on a single dataset.
    """

    value: str
    interval: str
    alone: bool
    basis: str
    equal_length: bool
    p: str = ""
    established: str = ""
    tally: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One arm.

    Attributes:
        arm: its name.
        score: Dice with its spread between seeds, or the mean rank where datasets are pooled.
        seeds: number of its own seeds; empty where datasets are pooled.
        differences: one for each baseline; None where there is no comparison.
    """

    arm: str
    score: str
    seeds: str
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Rows under one heading.

    Attributes:
        title: the heading.
        note: what stands beside it.
        rows: the rows.
    """

    title: str
    note: str
    rows: tuple[Any, ...]


def results(content: Content, comparisons: Sequence[st.Comparison]) -> list[Group]:
    """Dataset and budget -> each arm's Dice and its differences to the baselines."""
    spreads = {(s.dataset_name, s.budget, s.arm): s for s in st.seed_spread(content.records)}
    compared = {(c.dataset_name, c.budget, c.arm, c.baseline): c for c in comparisons}
    groups = []
    for dataset_name in content.datasets:
        for budget in content.budgets(dataset_name):
            rows = []
            for arm in content.arms:
                if spread := spreads.get((dataset_name, budget, arm)):
                    found = [compared.get((dataset_name, budget, arm, b)) for b in st.BASELINES]
                    rows.append(_row(spread, found))
            note = _basis(content, dataset_name, budget)
            groups.append(Group(title=f"{dataset_name}, {budget}", note=note, rows=tuple(rows)))
    return groups


def _row(spread: st.SeedSpread, compared: Sequence[st.Comparison | None]) -> Row:
    return Row(
        arm=spread.arm,
        score=wording.spread(spread.mean, spread.sd),
        seeds=str(len(spread.seeds)),
        differences=tuple(_difference(c) if c else None for c in compared),
    )


def _difference(c: st.Comparison) -> Difference:
    established = ("gain" if c.difference > 0 else "loss") if c.finding else ""
    ends = wording.interval(c.low, c.high)
    return Difference(
        value=wording.signed(c.difference),
        interval=ends,
        alone=len(c.seeds) == 1,
        basis=str(len(c.seeds)),
        equal_length=c.equal_length,
        p=wording.p_value(c.p_holm),
        established=established,
    )


def _basis(content: Content, dataset_name: str, budget: str) -> str:
    records = [r for r in content.records if (r.dataset_name, r.budget) == (dataset_name, budget)]
    patients = len({score.patient for score in records[0].scores})
    return f"{labelled(records)}, {wording.count(patients, 'test patient')}"


def labelled(records: Sequence[RunRecord]) -> str:
    """`9 labelled cases`; a range where seeds differ."""
    return wording.span((len(r.training_cases) for r in records), "labelled case")


def pooled(content: Content, overall: Sequence[st.Overall], comparisons: Sequence[st.Comparison]) -> list[Group]:
    """Budget -> each arm's mean rank and its differences to the baselines, averaged over datasets.

    The heading says what the ranks stand on; each difference stands on the datasets and seeds that its arms share.
    """
    rankings = st.mean_ranks(content.records)
    by_key = {(o.budget, o.arm, o.baseline): o for o in overall}
    groups = []
    for budget in content.budgets():
        tallies = st.wins_ties_losses(c for c in comparisons if c.budget == budget)
        rows = []
        for arm in content.arms:
            found = [by_key.get((budget, arm, baseline)) for baseline in st.BASELINES]
            rank = ranking.ranks.get(arm) if (ranking := rankings.get(budget)) else None
            if any(found) or rank is not None:
                rows.append(_pooled_row(arm, rank, found, tallies))
        if rows:
            note = f"ranks over {wording.basis(rankings[budget].seeds)}" if budget in rankings else "no ranks"
            groups.append(Group(title=budget, note=note, rows=tuple(rows)))
    return groups


def _pooled_row(
    arm: str,
    rank: float | None,
    found: Sequence[st.Overall | None],
    tallies: Mapping[tuple[str, str], tuple[int, int, int]],
) -> Row:
    return Row(
        arm=arm,
        score=wording.NOTHING if rank is None else f"{rank:.1f}",
        seeds="",
        differences=tuple(_pooled_difference(o, tallies) if o else None for o in found),
    )


def _pooled_difference(o: st.Overall, tallies: Mapping[tuple[str, str], tuple[int, int, int]]) -> Difference:
    ends = wording.interval(o.low, o.high)
    return Difference(
        value=wording.signed(o.difference),
        interval=ends,
        alone=min(map(len, o.seeds)) == 1,
        basis=f"{len(o.datasets)} / {wording.numbers(map(len, o.seeds))}",
        equal_length=o.equal_length,
        tally=" / ".join(map(str, tallies[o.arm, o.baseline])),
    )


def transfers(content: Content) -> list[Group]:
    """Dataset -> (arm, number of tensors of each status)."""
    return [
        Group(
            title=dataset_name,
            note="",
            rows=tuple((arm, *(str(counts.get(s, wording.NOTHING)) for s in STATUSES)) for arm, counts in arms.items()),
        )
        for dataset_name, arms in content.facts.transfer.items()
    ]


def devices(content: Content) -> str:
    """How many runs ran on which device, as their records say; empty where none does."""
    counts = Counter(r.device for r in content.records)
    named = [f"{device or 'not recorded'}: {wording.count(n, 'run')}" for device, n in sorted(counts.items())[::-1]]
    return "; ".join(named) if any(counts) else ""


def environment(about: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Key and value of each leaf of a nested mapping."""
    rows: list[tuple[str, str]] = []
    for key, value in about.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += environment(value, f"{name}: ")
        else:
            rows.append((name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows
