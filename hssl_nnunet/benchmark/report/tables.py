"""The tables of the page: rows of text, every number from the records or from the statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hssl_nnunet.benchmark import statistics as st
from hssl_nnunet.benchmark.records import RunRecord
from hssl_nnunet.benchmark.report import wording
from hssl_nnunet.benchmark.report.content import STATUSES, Content


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """An arm against a baseline, as text.

    Attributes:
        value: difference in Dice points.
        interval: its 95 % interval.
        basis: number of shared seeds; `4 / 3`, of datasets and seeds, where they are pooled.
        equal_length: whether both were fine-tuned for as many steps.
        last: p after Holm; wins, ties and losses, as `3 / 1 / 0`, where datasets are pooled.
        established: `gain`, `loss` or empty.
    """

    value: str
    interval: str
    basis: str
    equal_length: bool
    last: str
    established: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One arm.

    Attributes:
        arm: its name.
        score: Dice with its spread between seeds, or the mean rank where datasets are pooled.
        seeds: number of its own seeds; empty where datasets are pooled.
        differences: one for each of the page's baselines; None where there is no comparison.
    """

    arm: str
    score: str
    seeds: str = ""
    differences: Sequence[Difference | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Rows under one heading.

    Attributes:
        title: the heading.
        note: what stands beside it.
        rows: the rows.
    """

    title: str
    note: str = ""
    rows: Sequence[Any]


def results(content: Content, comparisons: Sequence[st.Comparison]) -> list[Group]:
    """Dataset and budget -> each arm's Dice and its differences to the baselines."""
    spreads = {(s.dataset_name, s.budget, s.arm): s for s in st.seed_spread(content.records)}
    compared = {(c.dataset_name, c.budget, c.arm, c.baseline): c for c in comparisons}
    groups = []
    for dataset_name, budget in content.places:
        rows = []
        for arm in content.arms:
            if spread := spreads.get((dataset_name, budget, arm)):
                found = [compared.get((dataset_name, budget, arm, baseline)) for baseline in content.baselines]
                rows.append(_row(spread, found))
        note = _basis(content.at(dataset_name, budget))
        groups.append(Group(title=f"{dataset_name}, {budget}", note=note, rows=rows))
    return groups


def _row(spread: st.SeedSpread, compared: Sequence[st.Comparison | None]) -> Row:
    return Row(
        arm=spread.arm,
        score=wording.spread(spread.mean, spread.sd),
        seeds=str(len(spread.seeds)),
        differences=[_difference(c) if c else None for c in compared],
    )


def _difference(c: st.Comparison) -> Difference:
    return Difference(
        value=wording.signed(c.difference),
        interval=wording.marked_interval(c.low, c.high, [c.seeds]),
        basis=str(len(c.seeds)),
        equal_length=c.equal_length,
        last=wording.p_value(c.p_holm),
        established=("gain" if c.difference > 0 else "loss") if c.finding else "",
    )


def _basis(records: Sequence[RunRecord]) -> str:
    return f"{labelled(records)}, {wording.count(len(records[0].patient_dice), 'test patient')}"


def labelled(records: Sequence[RunRecord]) -> str:
    """`9 labelled cases`; a range where seeds differ."""
    return wording.span((len(r.training_cases) for r in records), "labelled case")


def pooled(content: Content, overall: Sequence[st.Overall], comparisons: Sequence[st.Comparison]) -> list[Group]:
    """Budget -> each arm's mean rank and its differences to the baselines, averaged over datasets.

    The heading says what the ranks stand on; each difference stands on the datasets and seeds that its arms share.
    """
    rankings = st.mean_ranks(content.records)
    by_key = {(o.budget, o.arm, o.baseline): o for o in overall}
    verdicts = Counter((c.budget, c.arm, c.baseline, c.verdict) for c in comparisons)
    groups = []
    for budget in content.budgets():
        rows, ranking = [], rankings.get(budget)
        for arm in content.arms:
            found = [by_key.get((budget, arm, baseline)) for baseline in content.baselines]
            rank = ranking.ranks.get(arm) if ranking else None
            if any(found) or rank is not None:
                score = wording.NOTHING if rank is None else f"{rank:.2f}"
                differences = [_pooled_difference(o, verdicts) if o else None for o in found]
                rows.append(Row(arm=arm, score=score, differences=differences))
        if rows:
            note = f"ranks over {wording.basis(ranking.seeds)}" if ranking else "no ranks"
            groups.append(Group(title=budget, note=note, rows=rows))
    return groups


def _pooled_difference(o: st.Overall, verdicts: Mapping[tuple[str, str, str, st.Verdict], int]) -> Difference:
    return Difference(
        value=wording.signed(o.difference),
        interval=wording.marked_interval(o.low, o.high, o.seeds),
        basis=f"{len(o.datasets)} / {wording.numbers(map(len, o.seeds))}",
        equal_length=o.equal_length,
        last=" / ".join(str(verdicts[o.budget, o.arm, o.baseline, verdict]) for verdict in st.VERDICTS),
    )


def transfers(content: Content) -> list[Group]:
    """Dataset -> (arm, number of tensors of each status)."""
    return [
        Group(title=dataset_name, rows=[(arm, *(str(counts[s]) for s in STATUSES)) for arm, counts in arms.items()])
        for dataset_name, arms in content.transfer.items()
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
