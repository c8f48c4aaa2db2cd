"""An arm with few labels against a baseline with the most: how much of what labels bring it saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from hssl_nnunet.benchmark.pairing import DiceTable, Runs, dice_table, groups, shared_seeds
from hssl_nnunet.benchmark.records import RunRecord
from hssl_nnunet.benchmark.statistics import BASELINES, mean_difference


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelGap:
    """An arm at one budget minus a baseline at the largest, in Dice points: below 0 as long as labels are missing.

    On the same test patients and seeds; the labelled cases of a small budget are among those of a larger one. The
    baseline itself is an arm too: what it lacks at the small budget is the measure of the others.

    Attributes:
        arm: name of the arm.
        budget: its label budget.
        baseline: name of the baseline.
        most: the baseline's budget with the most labelled cases.
        datasets: where both were run: one, or those that the mean is over.
        seeds: shared seeds of each dataset.
        difference: mean over datasets, seeds and patients.
        low: lower end of the 95 % interval, as in `statistics.Overall`.
        high: upper end.
    """

    arm: str
    budget: str
    baseline: str
    most: str
    datasets: tuple[str, ...]
    seeds: tuple[tuple[int, ...], ...]
    difference: float
    low: float
    high: float


def label_gaps(records: Runs, baselines: Sequence[str] = BASELINES) -> list[LabelGap]:
    """Every arm, the baseline too, where it has fewer labelled cases than the baseline's largest budget.

    First the mean over datasets, where several have both, then each dataset.

    Raises:
        HSSLError: see `dice_table`.
    """
    result = []
    for baseline in baselines:
        for (budget, arm, most), tables in _paired(records, baseline).items():
            parts = [tables, *([one] for one in tables)] if len(tables) > 1 else [tables]
            result += [_gap(arm, budget, baseline, most, part) for part in parts]
    return result


def _paired(records: Runs, baseline: str) -> dict[tuple[str, str, str], list[tuple[str, DiceTable]]]:
    """Budget, arm and the baseline's largest budget -> datasets that have both, with the Dice of both."""
    by_dataset: dict[str, dict[str, dict[str, list[RunRecord]]]] = {}
    for (dataset_name, budget), by_arm in groups(records).items():
        by_dataset.setdefault(dataset_name, {})[budget] = by_arm
    found: dict[tuple[str, str, str], list[tuple[str, DiceTable]]] = {}
    for dataset_name, by_budget in by_dataset.items():
        most = max((b for b in by_budget if baseline in by_budget[b]), key=lambda b: _cases(by_budget[b]), default="")
        for budget, by_arm in by_budget.items():
            if not most or _cases(by_arm) >= _cases(by_budget[most]):
                continue
            for arm, runs in by_arm.items():
                reference = by_budget[most][baseline]
                if shared_seeds(runs, reference):
                    table = dice_table(runs, reference, same_labels=False)
                    found.setdefault((budget, arm, most), []).append((dataset_name, table))
    return found


def _cases(by_arm: Mapping[str, Runs]) -> float:
    """Labelled cases of a budget."""
    return median(len(r.training_cases) for runs in by_arm.values() for r in runs)


def _gap(arm: str, budget: str, baseline: str, most: str, found: Sequence[tuple[str, DiceTable]]) -> LabelGap:
    names, tables = zip(*found, strict=True)
    difference, low, high = mean_difference(tables)
    return LabelGap(
        arm=arm,
        budget=budget,
        baseline=baseline,
        most=most,
        datasets=names,
        seeds=tuple(table.seeds for table in tables),
        difference=difference,
        low=low,
        high=high,
    )
