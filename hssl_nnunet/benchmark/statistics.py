"""Whether an arm is better than a baseline: paired over patients and seeds, with an interval that counts both.

Three numbers answer three questions. `difference` is the point estimate, and the verdict (win, tie, loss) is about it
alone. `p` asks whether patients agree on the sign, *for the seeds that were run*. The interval asks how far other
patients and other seeds could move the difference. A `finding` needs the last two. All of them hold for the weights
that were given: pretraining runs once, and how it varies is in none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from hssl_nnunet.benchmark.intervals import LEVEL, Floats, crossed_interval, holm, wilcoxon_p
from hssl_nnunet.benchmark.records import RunRecord
from hssl_nnunet.errors import HSSLError

Runs = Sequence[RunRecord]
Verdict = Literal["win", "tie", "loss"]

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
        low: lower end of the 95 % interval, see `crossed_interval`; nan with one patient.
        high: upper end.
        by_seed: mean difference of each of `seeds`.
        p: Wilcoxon signed-rank over patients, see `wilcoxon_p`.
        p_holm: p after Holm over all comparisons with this baseline (every dataset, budget and arm together).
        verdict: win when difference > MARGIN, loss when < -MARGIN, else tie: of the point estimate, however uncertain.
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

    @property
    def finding(self) -> bool:
        """Whether the difference is established: p_holm < 0.05, 0 outside the interval, and at least three seeds.

        Each alone is not enough: p ignores that seeds vary, and the interval knows of no other comparison.
        """
        enough_seeds = len(self.seeds) >= SEEDS_OF_A_FINDING
        return enough_seeds and self.p_holm < 1 - LEVEL and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Overall:
    """An arm against a baseline at one budget: mean difference over datasets of equal weight, in Dice points.

    `datasets` are those that have both; two arms can be compared only where these agree. The 95 % interval from `low`
    to `high` is over seeds and patients of these very datasets, not over a population of datasets.
    """

    budget: str
    arm: str
    baseline: str
    datasets: tuple[str, ...]
    difference: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedSpread:
    """Mean and standard deviation (n - 1; nan with one seed) over seeds of an arm's mean Dice, in Dice points."""

    dataset_name: str
    budget: str
    arm: str
    seeds: tuple[int, ...]
    mean: float
    sd: float


class DiceTable(NamedTuple):
    """Dice of several arms over what they share: `points` is (arms, seeds, patients) in Dice points [0, 100]."""

    seeds: tuple[int, ...]
    patients: tuple[str, ...]
    points: Floats


class Reach(NamedTuple):
    """Epochs done until a Dice was reached, and their share of the epochs that the baseline's runs have."""

    epoch: int
    share: float


def patient_dice(record: RunRecord) -> dict[str, float]:
    """Mean Dice in [0, 1] of each patient: over the labels of a case, then over the cases.

    nan (label empty in truth and prediction) is left out, and so is a case or a patient of which nothing is left.
    """
    cases: dict[tuple[str, str], list[float]] = {}
    for score in record.scores:
        if not isnan(score.dice):
            cases.setdefault((score.patient, score.case), []).append(score.dice)
    patients: dict[str, list[float]] = {}
    for (patient, _), values in cases.items():
        patients.setdefault(patient, []).append(fmean(values))
    return {patient: fmean(values) for patient, values in patients.items()}


def dice_table(*arms: Runs) -> DiceTable:
    """Dice of arms side by side, on shared seeds and on the patients that every one of these runs scored.

    A patient whose labels are all empty drops out of every arm as soon as one run predicts nothing there (nan).

    Args:
        arms: the records of each arm; all of one dataset and budget.

    Raises:
        HSSLError: no shared seed, a seed twice in an arm, other labelled cases for the same seed, or another test set.
    """
    seeds = _shared_seeds(*arms)
    if not seeds:
        got = "; ".join(", ".join(_name(record) for record in runs) or "no run" for runs in arms)
        raise HSSLError(f"No seed is shared, got {got}. Run the missing seeds with `hssl benchmark run --seeds`.")
    used = [sorted((r for r in runs if r.seed in seeds), key=lambda r: r.seed) for runs in arms]
    _check_same_cases(used, seeds)
    dice = [[patient_dice(record) for record in runs] for runs in used]
    patients = tuple(sorted(set.intersection(*(set(scored) for runs in dice for scored in runs))))
    if not patients:
        raise HSSLError(f"{_name(used[0][0])}: no patient is scored in this and all compared runs. Check the labels.")
    points = 100 * np.array([[[scored[patient] for patient in patients] for scored in runs] for runs in dice])
    return DiceTable(seeds, patients, points)


def paired(records_of_arm: Runs, records_of_baseline: Runs) -> Floats:
    """Arm minus baseline, (seeds, patients) in Dice points; what is shared and what is refused: see `dice_table`."""
    arm, baseline = dice_table(records_of_arm, records_of_baseline).points
    differences: Floats = arm - baseline
    return differences


def compare_all(records: Runs, baselines: Sequence[str] = BASELINES) -> list[Comparison]:
    """Every arm against each baseline, on every dataset and budget where both have a seed in common.

    Holm's family is all comparisons with one baseline. Sorted by baseline (as given), dataset, budget, arm.

    Raises:
        HSSLError: see `dice_table` and `holm`.
    """
    result: list[Comparison] = []
    for baseline in baselines:
        family = [_compare(*pair) for pair in _pairs(records, baseline)]
        result += [replace(c, p_holm=p) for c, p in zip(family, holm([c.p for c in family]), strict=True)]
    return result


def _compare(arm: Runs, reference: Runs) -> Comparison:
    table = dice_table(arm, reference)
    differences = table.points[0] - table.points[1]
    difference, p = float(differences.mean()), wilcoxon_p(differences)
    low, high = crossed_interval([differences])
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
        by_seed=tuple(differences.mean(1).tolist()),
        p=p,
        p_holm=p,
        verdict="win" if difference > MARGIN else "loss" if difference < -MARGIN else "tie",
    )


def overall(records: Runs, baselines: Sequence[str] = BASELINES) -> list[Overall]:
    """Every arm against each baseline at each budget, averaged over the datasets where both have a seed in common."""
    result: list[Overall] = []
    for baseline in baselines:
        found: dict[tuple[str, str], dict[str, Floats]] = {}
        for arm, reference in _pairs(records, baseline):
            key = arm[0].budget, arm[0].arm
            found.setdefault(key, {})[arm[0].dataset_name] = paired(arm, reference)
        for (budget, name), tables in sorted(found.items(), key=lambda item: (_size(item[0][0]), item[0][1])):
            low, high = crossed_interval(list(tables.values()))
            mean = fmean(float(table.mean()) for table in tables.values())
            result.append(
                Overall(
                    budget=budget,
                    arm=name,
                    baseline=baseline,
                    datasets=tuple(tables),
                    difference=mean,
                    low=low,
                    high=high,
                )
            )
    return result


def wins_ties_losses(comparisons: Iterable[Comparison]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(arm, baseline) -> how many of the comparisons are wins, ties and losses."""
    verdicts: dict[tuple[str, str], list[Verdict]] = {}
    for c in comparisons:
        verdicts.setdefault((c.arm, c.baseline), []).append(c.verdict)
    return {pair: (found.count("win"), found.count("tie"), found.count("loss")) for pair, found in verdicts.items()}


def mean_ranks(records: Runs, arms: Collection[str] | None = None) -> dict[str, dict[str, float]]:
    """Budget -> arm -> mean over datasets of its rank by mean Dice; 1 = best, equal arms share the mean of their ranks.

    Args:
        records: runs.
        arms: the arms that are ranked; None = all that the budget has. A dataset where one of them is missing, or where
            they have no seed in common, is left out; so is a budget without any dataset left.
    """
    groups = _groups(records)
    ranks: dict[str, list[dict[str, float]]] = {}
    for (_, budget), by_arm in groups.items():
        names = sorted(arms or set().union(*(found for (_, b), found in groups.items() if b == budget)))
        if set(names) <= set(by_arm) and _shared_seeds(*(by_arm[name] for name in names)):
            means = dice_table(*(by_arm[name] for name in names)).points.mean((1, 2))
            ranks.setdefault(budget, []).append(dict(zip(names, stats.rankdata(-means).tolist(), strict=True)))
    return {b: {name: fmean(rank[name] for rank in ranks[b]) for name in ranks[b][0]} for b in sorted(ranks, key=_size)}


def seed_spread(records: Runs) -> list[SeedSpread]:
    """How much each arm varies between its seeds; sorted by dataset, budget, arm."""
    result: list[SeedSpread] = []
    for (dataset_name, budget), by_arm in _groups(records).items():
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


def epochs_to_reach(records: Runs, dataset_name: str, budget: str, arm: str, baseline: str = "vanilla") -> Reach | None:
    """When the arm's curve of test Dice first reaches the last value of the baseline's; curves averaged over seeds.

    Both are the `epochs` of the records, on the seeds and epochs that all runs have. A curve that wobbles touches its
    last value before its end: ask for the baseline itself as `arm` too, and read an arm's value against that.

    Returns:
        None when it never does, or when a curve is missing.
    """
    by_arm = _groups(records).get((dataset_name, budget), {})
    arms = [by_arm.get(arm, []), by_arm.get(baseline, [])]
    curve, reference = (_curve([r for r in runs if r.seed in _shared_seeds(*arms)]) for runs in arms)
    if not curve or not reference:
        return None
    target = reference[max(reference)]
    epoch = next((epoch for epoch in sorted(curve) if curve[epoch] >= target), None)
    return None if epoch is None else Reach(epoch, epoch / by_arm[baseline][0].num_epochs)


def _curve(runs: Runs) -> dict[int, float]:
    """Epoch -> Dice averaged over runs, at the epochs that all of them have."""
    curves = [{point.epoch: point.dice for point in run.epochs} for run in runs]
    shared = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return {epoch: fmean(curve[epoch] for curve in curves) for epoch in sorted(shared)}


def _groups(records: Runs) -> dict[tuple[str, str], dict[str, list[RunRecord]]]:
    """(dataset, budget) -> arm -> its records, each sorted; numbers of cases before shares, both by size."""
    groups: dict[tuple[str, str], dict[str, list[RunRecord]]] = {}
    for r in sorted(records, key=lambda r: (r.dataset_name, _size(r.budget), r.arm, r.seed)):
        groups.setdefault((r.dataset_name, r.budget), {}).setdefault(r.arm, []).append(r)
    return groups


def _size(budget: str) -> tuple[bool, float]:
    return budget.endswith("%"), float(budget.rstrip("%"))


def _pairs(records: Runs, baseline: str) -> Iterator[tuple[list[RunRecord], list[RunRecord]]]:
    """Each arm's records with those of the baseline, where they have a seed in common."""
    for by_arm in _groups(records).values():
        for name, runs in by_arm.items():
            reference = by_arm.get(baseline, [])
            if name != baseline and _shared_seeds(runs, reference):
                yield runs, reference


def _shared_seeds(*arms: Runs) -> tuple[int, ...]:
    return tuple(sorted(set.intersection(*({record.seed for record in runs} for runs in arms))))


def _check_same_cases(arms: Sequence[Runs], seeds: Sequence[int]) -> None:
    """Refuse a seed twice, other test cases than the first run's, other labelled cases than those of the same seed."""
    for runs in arms:
        if [record.seed for record in runs] != list(seeds):
            raise HSSLError(
                f"{', '.join(_name(record) for record in runs)}: expected one run a seed. Remove the others."
            )
        for record, peer in zip(runs, arms[0], strict=True):
            _refuse("test cases", record, arms[0][0], _test_set(record) ^ _test_set(arms[0][0]))
            _refuse("labelled cases", record, peer, set(record.training_cases) ^ set(peer.training_cases))


def _refuse(what: str, record: RunRecord, other: RunRecord, differing: Collection[str]) -> None:
    if differing:
        raise HSSLError(
            f"{_name(record)} and {_name(other)} differ in {what}, expected the same: {len(differing)} in one only, "
            f"such as {', '.join(sorted(differing)[:3])}. Remove the run that is not of this benchmark and repeat it."
        )


def _test_set(record: RunRecord) -> set[str]:
    return {f"{s.case} (patient {s.patient}, {s.label})" for s in record.scores}


def _name(record: RunRecord) -> str:
    return f"{record.dataset_name}/{record.budget}/{record.arm}/seed_{record.seed}"
