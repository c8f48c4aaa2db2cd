"""Runs side by side: the seeds and patients that arms share, and what is refused because it is no pair."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
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

    @property
    def differences(self) -> Floats:
        """The first arm minus the second, (seeds, patients)."""
        differences: Floats = self.points[0] - self.points[1]
        return differences


def dice_table(*arms: Runs, same_labels: bool = True) -> DiceTable:
    """Dice of arms side by side, on shared seeds.

    Args:
        arms: the records of each arm; all of one dataset, and of one budget where labels are the same.
        same_labels: whether runs of one seed must have the same labelled cases.

    Raises:
        HSSLError: no shared seed, a seed twice in an arm, another test set, or other labelled cases for the same seed.
    """
    seeds = shared_seeds(*arms)
    if not seeds:
        got = "; ".join(", ".join(record.name for record in runs) or "no run" for runs in arms)
        raise HSSLError(f"No seed is shared, got {got}. Run the missing seeds with `hssl benchmark run --seeds`.")
    used = [sorted((r for r in runs if r.seed in seeds), key=lambda r: r.seed) for runs in arms]
    _check_same_cases(used, seeds, same_labels)
    dice = [[record.patient_dice for record in runs] for runs in used]
    patients = tuple(sorted(dice[0][0]))  # every run has the same test cases
    if not patients:
        raise HSSLError(f"{used[0][0].name}: no case is scored. Check the labels of the dataset.")
    points = 100 * np.array([[[scored[patient] for patient in patients] for scored in runs] for runs in dice])
    return DiceTable(seeds, patients, points)


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
                f"{', '.join(record.name for record in runs)}: expected one run a seed. Remove the folders "
                "of the others below `runs`."
            )
        for record, peer in zip(runs, arms[0], strict=True):
            _refuse("test cases", record, arms[0][0], record.test_set ^ arms[0][0].test_set)
            if same_labels:
                _refuse("labelled cases", record, peer, set(record.training_cases) ^ set(peer.training_cases))


def _refuse(what: str, record: RunRecord, other: RunRecord, differing: Collection[str]) -> None:
    if differing:
        raise HSSLError(
            f"{record.name} and {other.name} differ in {what}, expected the same: {len(differing)} in one only, "
            f"such as {', '.join(sorted(differing)[:3])}. Remove the folder below `runs` of the one that is not of "
            "this benchmark, and run the same command again."
        )
