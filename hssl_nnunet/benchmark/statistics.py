"""Whether an arm is better than a baseline: paired over patients and seeds, with an interval that counts both.

Three numbers answer three questions. `difference` is the point estimate, and the verdict (win, tie, loss) is about it
alone. `p` asks whether patients agree on the sign, *for the seeds that were run*. The interval asks how far other
patients and other seeds could move the difference. A `finding` needs the last two. All of them hold for the weights
that were given: pretraining runs once, and how it varies is in none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan
from statistics import fmean
from typing import Literal, get_args

from scipy import stats

from hssl_nnunet.benchmark.intervals import LEVEL, Floats, crossed_interval, holm, wilcoxon_p
from hssl_nnunet.benchmark.pairing import DiceTable, Runs, budget_size, dice_table, groups, pairs, shared_seeds

Verdict = Literal["win", "tie", "loss"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

BASELINES = ("vanilla", "scratch")
MARGIN = 0.5  # Dice points, declared before any run
SEEDS_OF_A_FINDING = 3  # two say too little of how seeds vary, see `crossed_interval`


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """An arm against a baseline on one dataset at one budget; all values in Dice points, arm minus baseline.

    Attributes:
        dataset_name: nnU-Net's dataset name of the target.
        budget: label budget, as typed.
        arm: name of the arm.
        baseline: name of the arm it is compared with.
        seeds: seeds that both have.
        patients: number of patients that all runs scored.
        difference: mean over seeds and patients.
        low: lower end of the 95 % interval, see `crossed_interval`; over patients alone with one seed, nan with one
            patient.
        high: upper end.
        by_seed: mean difference of each of `seeds`.
        p: Wilcoxon signed-rank over patients, see `wilcoxon_p`.
        p_holm: p after Holm over all comparisons with this baseline (every dataset, budget and arm together).
        verdict: win when difference > MARGIN, loss when < -MARGIN, else tie: of the point estimate, however uncertain.
        equal_length: whether all these runs were fine-tuned for as many optimiser steps.
    """

    dataset_name: str
    budget: str
    arm: str
    baseline: str
    seeds: tuple[int, ...]
    patients: int
    difference: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    p: float
    p_holm: float
    verdict: Verdict
    equal_length: bool = True

    @property
    def finding(self) -> bool:
        """Whether the difference is established: p_holm < 0.05, 0 outside the interval, at least three seeds.

        Each alone is not enough: p ignores that seeds vary, and the interval knows of no other comparison. Runs of
        unequal length establish nothing about what they start from.
        """
        fair = self.equal_length and len(self.seeds) >= SEEDS_OF_A_FINDING
        return fair and self.p_holm < 1 - LEVEL and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Overall:
    """An arm against a baseline at one budget: mean difference over datasets of equal weight, in Dice points.

    `datasets` are those that have both, `seeds` the shared ones of each; two arms can be compared only where these
    agree. The 95 % interval from `low` to `high` is over seeds and patients of these very datasets, not over a
    population of datasets; see `persons` for datasets of the same patients. `equal_length` as in `Comparison`.
    """

    budget: str
    arm: str
    baseline: str
    datasets: tuple[str, ...]
    seeds: tuple[tuple[int, ...], ...]
    difference: float
    low: float
    high: float
    equal_length: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Mean rank of each arm at one budget, over `datasets` and on the `seeds` of each that all these arms share.

    `ranks` is arm -> mean over datasets of its rank by mean Dice; 1 = best, equal arms share the mean of their ranks.
    """

    datasets: tuple[str, ...]
    seeds: tuple[tuple[int, ...], ...]
    ranks: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedSpread:
    """Mean and standard deviation (n - 1; nan with one seed) over seeds of an arm's mean Dice, in Dice points."""

    dataset_name: str
    budget: str
    arm: str
    seeds: tuple[int, ...]
    mean: float
    sd: float


def compare_all(records: Runs, baselines: Sequence[str] = BASELINES) -> list[Comparison]:
    """Every arm against each baseline, on every dataset and budget where both have a seed in common.

    Holm's family is all comparisons with one baseline. Sorted by baseline (as given), dataset, budget, arm.

    Raises:
        HSSLError: see `dice_table` and `holm`.
    """
    result: list[Comparison] = []
    for baseline in baselines:
        family = [_compare(*pair) for pair in pairs(records, baseline)]
        result += [replace(c, p_holm=p) for c, p in zip(family, holm([c.p for c in family]), strict=True)]
    return result


def _compare(arm: Runs, reference: Runs) -> Comparison:
    table = dice_table(arm, reference)
    difference, low, high = mean_difference([table])
    p = wilcoxon_p(table.differences)
    return Comparison(
        dataset_name=arm[0].dataset_name,
        budget=arm[0].budget,
        arm=arm[0].arm,
        baseline=reference[0].arm,
        seeds=table.seeds,
        patients=len(table.patients),
        difference=difference,
        low=low,
        high=high,
        by_seed=tuple(table.differences.mean(1).tolist()),
        p=p,
        p_holm=p,
        verdict="win" if difference > MARGIN else "loss" if difference < -MARGIN else "tie",
        equal_length=_equal_length(arm, reference),
    )


def _equal_length(arm: Runs, reference: Runs) -> bool:
    seeds = shared_seeds(arm, reference)
    return len({r.num_epochs * r.num_iterations_per_epoch for r in (*arm, *reference) if r.seed in seeds}) == 1


def overall(records: Runs, baselines: Sequence[str] = BASELINES) -> list[Overall]:
    """Every arm against each baseline at each budget, averaged over the datasets where both have a seed in common."""
    result: list[Overall] = []
    for baseline in baselines:
        found: dict[tuple[str, str], list[tuple[Runs, Runs]]] = {}
        for arm, reference in pairs(records, baseline):
            found.setdefault((arm[0].budget, arm[0].arm), []).append((arm, reference))
        for key in sorted(found, key=lambda key: (budget_size(key[0]), key[1])):
            result.append(_overall(found[key]))
    return result


def _overall(paired: Sequence[tuple[Runs, Runs]]) -> Overall:
    """Over the datasets of one arm and baseline at one budget."""
    tables = [dice_table(*pair) for pair in paired]
    difference, low, high = mean_difference(tables)
    arm, reference = paired[0]
    return Overall(
        budget=arm[0].budget,
        arm=arm[0].arm,
        baseline=reference[0].arm,
        datasets=tuple(runs[0].dataset_name for runs, _ in paired),
        seeds=tuple(table.seeds for table in tables),
        difference=difference,
        low=low,
        high=high,
        equal_length=all(_equal_length(*pair) for pair in paired),
    )


def mean_difference(tables: Sequence[DiceTable]) -> tuple[float, float, float]:
    """Mean difference of the first arm to the second over datasets of equal weight, and the ends of its interval."""
    return fmean(float(table.differences.mean()) for table in tables), *crossed_interval(persons(tables))


def persons(tables: Sequence[DiceTable]) -> list[Floats]:
    """Differences of the first arm to the second, a table for each dataset; of the same patients, one for all of them.

    Two images of one person err together, so datasets that show the same patients are not independent: where patients
    and seeds are the same, each person's differences are summed over datasets. The sums are scaled so that the mean of
    the returned tables is still that of all datasets with equal weight. Datasets that share some patients only, or
    have other seeds, count as independent.
    """
    sums: dict[tuple[tuple[int, ...], tuple[str, ...]], Floats] = {}
    for table in tables:
        key = table.seeds, table.patients
        sums[key] = sums[key] + table.differences if key in sums else table.differences
    return [total * (len(sums) / len(tables)) for total in sums.values()]


def mean_ranks(records: Runs) -> dict[str, Ranking]:
    """Budget -> ranking of the arms that have a run on every dataset of that budget; the others get no rank.

    So an arm that was run on one dataset does not take the others away from all. A dataset where the ranked arms have
    no seed in common is left out; a budget with fewer than two such arms, or no dataset left, has no ranking.
    """
    at_budget: dict[str, dict[str, dict[str, Runs]]] = {}
    for (dataset_name, budget), by_arm in groups(records).items():
        at_budget.setdefault(budget, {})[dataset_name] = dict(by_arm)
    found = {budget: _ranking(at_budget[budget]) for budget in sorted(at_budget, key=budget_size)}
    return {budget: ranking for budget, ranking in found.items() if ranking is not None}


def _ranking(by_dataset: dict[str, dict[str, Runs]]) -> Ranking | None:
    arms = sorted(set.intersection(*(set(by_arm) for by_arm in by_dataset.values())))
    if len(arms) < 2:
        return None
    runs = {name: [by_arm[arm] for arm in arms] for name, by_arm in by_dataset.items()}
    tables = {name: dice_table(*of_arms) for name, of_arms in runs.items() if shared_seeds(*of_arms)}
    if not tables:
        return None
    ranks = [stats.rankdata(-table.points.mean((1, 2))).tolist() for table in tables.values()]
    return Ranking(
        datasets=tuple(tables),
        seeds=tuple(table.seeds for table in tables.values()),
        ranks={arm: fmean(of_arm) for arm, of_arm in zip(arms, zip(*ranks, strict=True), strict=True)},
    )


def seed_spread(records: Runs) -> list[SeedSpread]:
    """How much each arm varies between its seeds; sorted by dataset, budget, arm."""
    result: list[SeedSpread] = []
    for (dataset_name, budget), by_arm in groups(records).items():
        for name, runs in by_arm.items():
            table = dice_table(runs)
            of_seed = table.points[0].mean(1)
            result.append(
                SeedSpread(
                    dataset_name=dataset_name,
                    budget=budget,
                    arm=name,
                    seeds=table.seeds,
                    mean=float(of_seed.mean()),
                    sd=float(of_seed.std(ddof=1)) if len(of_seed) > 1 else nan,
                )
            )
    return result
