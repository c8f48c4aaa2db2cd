"""The tables of the page: rows of text, every number from the records or from the statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
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
        p: p after Holm; empty where there is none.
        established: `gain`, `loss` or empty.
        tally: wins, ties and losses, as `3 / 1 / 0`; empty on a single dataset.
    """

    value: str
    interval: str
    p: str = ""
    established: str = ""
    tally: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One arm.

    Attributes:
        arm: its name.
        score: Dice with its spread between seeds, or the mean rank where datasets are pooled.
        basis: number of seeds, or of datasets.
        differences: one for each baseline; None where there is no comparison.
    """

    arm: str
    score: str
    basis: str
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
        basis=str(len(spread.seeds)),
        differences=tuple(_difference(c) if c else None for c in compared),
    )


def _difference(c: st.Comparison) -> Difference:
    established = ("gain" if c.difference > 0 else "loss") if c.finding else ""
    ends = wording.interval(c.low, c.high)
    return Difference(
        value=wording.signed(c.difference), interval=ends, p=wording.p_value(c.p_holm), established=established
    )


def _basis(content: Content, dataset_name: str, budget: str) -> str:
    records = [r for r in content.records if (r.dataset_name, r.budget) == (dataset_name, budget)]
    patients = len({score.patient for score in records[0].scores})
    return f"{labelled(records)}, {wording.count(patients, 'test patient')}"


def labelled(records: Sequence[RunRecord]) -> str:
    """`9 labelled cases`; a range where seeds differ."""
    counts = sorted({len(r.training_cases) for r in records})
    if len(counts) == 1:
        return wording.count(counts[0], "labelled case")
    return f"{counts[0]} to {counts[-1]} labelled cases"


def pooled(content: Content, overall: Sequence[st.Overall], comparisons: Sequence[st.Comparison]) -> list[Group]:
    """Budget -> each arm's mean rank and its differences to the baselines, averaged over datasets."""
    ranks = st.mean_ranks(content.records)
    by_key = {(o.budget, o.arm, o.baseline): o for o in overall}
    groups = []
    for budget in content.budgets():
        tallies = st.wins_ties_losses(c for c in comparisons if c.budget == budget)
        rows = []
        for arm in content.arms:
            found = [by_key.get((budget, arm, baseline)) for baseline in st.BASELINES]
            rank = ranks.get(budget, {}).get(arm)
            if any(found) or rank is not None:
                rows.append(_pooled_row(arm, rank, found, tallies))
        if rows:
            groups.append(Group(title=budget, note="", rows=tuple(rows)))
    return groups


def _pooled_row(
    arm: str,
    rank: float | None,
    found: Sequence[st.Overall | None],
    tallies: Mapping[tuple[str, str], tuple[int, int, int]],
) -> Row:
    datasets = sorted({len(o.datasets) for o in found if o})
    return Row(
        arm=arm,
        score=wording.NOTHING if rank is None else f"{rank:.1f}",
        basis=" / ".join(map(str, datasets)) or wording.NOTHING,
        differences=tuple(_pooled_difference(o, tallies) if o else None for o in found),
    )


def _pooled_difference(o: st.Overall, tallies: Mapping[tuple[str, str], tuple[int, int, int]]) -> Difference:
    ends = wording.interval(o.low, o.high)
    return Difference(
        value=wording.signed(o.difference), interval=ends, tally=" / ".join(map(str, tallies[o.arm, o.baseline]))
    )


def reaches(content: Content, baseline: str) -> list[Group]:
    """Dataset -> for each budget: epochs that each arm needs to reach the baseline's final Dice."""
    groups = []
    for dataset_name in content.datasets:
        rows = []
        for budget in content.budgets(dataset_name):
            if any(r.epochs for r in content.of(dataset_name, budget, baseline)):
                cells = [_reach(content, dataset_name, budget, arm, baseline) for arm in content.arms]
                rows.append((budget, tuple(cells)))
        if rows:
            groups.append(Group(title=dataset_name, note="", rows=tuple(rows)))
    return groups


def _reach(content: Content, dataset_name: str, budget: str, arm: str, baseline: str) -> str:
    if not any(r.epochs for r in content.of(dataset_name, budget, arm)):
        return wording.NOTHING
    reach = st.epochs_to_reach(content.records, dataset_name, budget, arm, baseline)
    return f"{reach.epoch} ({100 * reach.share:.0f} %)" if reach else "not reached"


def costs(content: Content) -> list[Group]:
    """Dataset -> (arm, runs, time of a run, time of an iteration, peak memory), over all budgets and seeds."""
    groups = []
    for dataset_name in content.datasets:
        rows = []
        for arm in content.arms:
            records = [r for r in content.records if (r.dataset_name, r.arm) == (dataset_name, arm)]
            if records:
                rows.append((arm, *_cost(records)))
        groups.append(Group(title=dataset_name, note="", rows=tuple(rows)))
    return groups


def _cost(records: Sequence[RunRecord]) -> tuple[str, str, str, str]:
    iterations = sum(r.num_epochs * r.num_iterations_per_epoch for r in records)
    step_s = sum(r.train_s for r in records) / iterations if iterations else float("nan")
    gpu = [r.peak_gpu_gib for r in records if r.peak_gpu_gib is not None]
    return (
        str(len(records)),
        wording.duration(fmean(r.train_s for r in records)),
        f"{step_s:.2f} s" if step_s >= 1 else f"{1000 * step_s:.0f} ms",
        f"{max(r.peak_gib for r in records):.1f} GiB" + (f", GPU {max(gpu):.1f} GiB" if gpu else ""),
    )


def pretrainings(content: Content) -> list[tuple[str, str, str, str]]:
    """(arm, time, weights file, its SHA-256); what was not told comes from the records that began with the weights."""
    rows = []
    for name, run in content.facts.pretraining.items():
        used = {
            r.weights_sha256
            for r in content.records
            if r.weights_sha256 and name in (r.arm, f"{r.arm}, {r.dataset_name}")
        }
        sha256 = run.sha256 or ", ".join(sorted(used))
        rows.append((name, wording.duration(run.seconds), run.weights or wording.NOTHING, sha256 or wording.NOTHING))
    return rows


# column -> what is shown of it: a term on held-out images, or a probe of the embedding
LEARNED = {
    "image": "val_image",
    "domain": "val_task",
    "group": "val_group",
    "reconstruction": "val_reconstruction",
    "domain told": "domain_accuracy",
    "by intensity and size alone": "domain_floor",
    "effective rank": "effective_rank",
    "image found again": "image_accuracy",
    "by chance": "image_floor",
}


def learned(content: Content) -> list[tuple[str, ...]]:
    """Arm, then the columns of `LEARNED`, of every pretraining that has told something."""
    return [
        (name, *(f"{run.learned[key]:.3g}" if key in run.learned else wording.NOTHING for key in LEARNED.values()))
        for name, run in content.facts.pretraining.items()
        if run.learned
    ]


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
