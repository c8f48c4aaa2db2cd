"""Runs side by side: the seeds and patients that arms share, and what is refused because it is no pair."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from math import isnan
from statistics import fmean
from typing import NamedTuple

import numpy as np

from hssl_nnunet.benchmark.intervals import Floats
from hssl_nnunet.benchmark.records import RunRecord
from hssl_nnunet.errors import HSSLError

Runs = Sequence[RunRecord]


class DiceTable(NamedTuple):
    """Dice of several arms over what they share: `points` is (arms, seeds, patients) in Dice points [0, 100]."""

    seeds: tuple[int, ...]
    patients: tuple[str, ...]
    points: Floats


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


def dice_table(*arms: Runs, same_labels: bool = True) -> DiceTable:
    """Dice of arms side by side, on shared seeds and on the patients that every one of these runs scored.

    A patient whose labels are all empty drops out of every arm as soon as one run predicts nothing there (nan).

    Args:
        arms: the records of each arm; all of one dataset, and of one budget where labels are the same.
        same_labels: whether runs of one seed must have the same labelled cases.

    Raises:
        HSSLError: no shared seed, a seed twice in an arm, another test set, or other labelled cases for the same seed.
    """
    seeds = shared_seeds(*arms)
    if not seeds:
        got = "; ".join(", ".join(_name(record) for record in runs) or "no run" for runs in arms)
        raise HSSLError(f"No seed is shared, got {got}. Run the missing seeds with `hssl benchmark run --seeds`.")
    used = [sorted((r for r in runs if r.seed in seeds), key=lambda r: r.seed) for runs in arms]
    _check_same_cases(used, seeds, same_labels)
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


def groups(records: Runs) -> dict[tuple[str, str], dict[str, list[RunRecord]]]:
    """(dataset, budget) -> arm -> its records, each sorted; numbers of cases before shares, both by size."""
    groups: dict[tuple[str, str], dict[str, list[RunRecord]]] = {}
    for r in sorted(records, key=lambda r: (r.dataset_name, budget_size(r.budget), r.arm, r.seed)):
        groups.setdefault((r.dataset_name, r.budget), {}).setdefault(r.arm, []).append(r)
    return groups


def budget_size(budget: str) -> tuple[bool, float]:
    """Key that sorts budgets: numbers of cases before shares, both by size."""
    return budget.endswith("%"), float(budget.rstrip("%"))


def pairs(records: Runs, baseline: str) -> Iterator[tuple[list[RunRecord], list[RunRecord]]]:
    """Each arm's records with those of the baseline, where they have a seed in common."""
    for by_arm in groups(records).values():
        for name, runs in by_arm.items():
            reference = by_arm.get(baseline, [])
            if name != baseline and shared_seeds(runs, reference):
                yield runs, reference


def shared_seeds(*arms: Runs) -> tuple[int, ...]:
    """Seeds that every arm has."""
    return tuple(sorted(set.intersection(*({record.seed for record in runs} for runs in arms))))


def _check_same_cases(arms: Sequence[Runs], seeds: Sequence[int], same_labels: bool) -> None:
    """Refuse a seed twice, other test cases than the first run's, other labelled cases than those of the same seed."""
    for runs in arms:
        if [record.seed for record in runs] != list(seeds):
            raise HSSLError(
                f"{', '.join(_name(record) for record in runs)}: expected one run a seed. Remove the others."
            )
        for record, peer in zip(runs, arms[0], strict=True):
            _refuse("test cases", record, arms[0][0], _test_set(record) ^ _test_set(arms[0][0]))
            if same_labels:
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
