"""Which cases test, and which are labelled at a budget: fixed once, by patient, nested over budgets.

`splits.json` in the benchmark's folder is written once; a later run adds datasets and seeds and changes nothing that is
there. The user's `splits_final.json` is neither read nor written.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.typed_json import STRICT, parse, to_json

SPLITS_FILE = "splits.json"
BUDGET = re.compile(r"(?P<cases>[1-9]\d*)|(?P<percent>\d+(\.\d+)?)%")
TEST_SEED = 2021  # of the test set, one for all benchmarks: it is drawn before any seed of a run


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseInfo:
    """What a split needs to know of a labelled case.

    Attributes:
        case: its name.
        patient: whom it shows.
        labels: foreground labels (or regions) with at least one voxel in its mask.
    """

    case: str
    patient: str
    labels: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSplit:
    """The split of one dataset.

    Attributes:
        test: the test cases, sorted.
        patients: case -> patient, of every case.
        order: seed -> the remaining cases in the order in which budgets take them: a budget of n takes the first n.
        covering: seed -> how many cases at the head of the order it takes to show every label; a file from before
            this was written has none.
        untouched: where values are tuned, cases of patients who test otherwise: neither trained on nor scored.
    """

    test: tuple[str, ...]
    patients: dict[str, str]
    order: dict[int, tuple[str, ...]]
    covering: dict[int, int] = field(default_factory=dict)
    untouched: tuple[str, ...] = ()

    __pydantic_config__ = STRICT

    @property
    def kept_out(self) -> tuple[str, ...]:
        """Cases that no training and no pretraining may see."""
        return (*self.test, *self.untouched)

    def labelled(self, seed: int, budget: str, min_cases: int = 1) -> list[str]:
        """The labelled cases of a seed at a budget, sorted.

        Args:
            seed: seed of the order.
            budget: the budget, as typed.
            min_cases: what a share never falls below; nor does it below what shows every label.

        Raises:
            HSSLError: the budget asks for more cases than there are, or for fewer than show every label.
        """
        order, least = self.order[seed], self.covering.get(seed, 1)
        count = budget_cases(budget, len(order), max(min_cases, least))
        if count > len(order):
            raise HSSLError(f"Budget {budget}: {count} labelled cases asked for, {len(order)} are not test cases.")
        if count < least:
            raise HSSLError(
                f"Budget {budget}: with seed {seed} it takes {least} cases to show every label. Ask for as many."
            )
        return sorted(order[:count])


def budget_cases(budget: str, available: int, min_cases: int = 1) -> int:
    """Number of labelled cases of a budget: `9` is nine cases, `5%` that share of `available`, at least `min_cases`.

    Raises:
        HSSLError: neither form, or a share above 100 %.
    """
    match = BUDGET.fullmatch(budget)
    if match and match["cases"]:
        return int(match["cases"])
    if match and 0 < float(match["percent"]) <= 100:
        return max(min(min_cases, available), round(float(match["percent"]) / 100 * available))
    raise HSSLError(f"Budget {budget!r}: expected a number of cases such as 9, or a share such as 5%.")


def make_split(
    cases: Sequence[CaseInfo], test_fraction: float, seeds: Sequence[int], untouched: Collection[str] = ()
) -> DatasetSplit:
    """Draw the test set and, for each seed, the order of the other cases.

    All cases of a patient are on one side, and next to each other in an order. Each order begins with cases that
    together show every label, as few as a greedy choice finds, so that no budget of at least that many lacks a label.

    Args:
        cases: every labelled case of the dataset.
        test_fraction: share of the patients that test; at least one, and at least one is left.
        seeds: seeds of the orders.
        untouched: patients who are left out of both.

    Raises:
        HSSLError: fewer than two patients are left.
    """
    usable = [c for c in cases if c.patient not in untouched]
    test = drawn_patients(usable, test_fraction)
    rest = [c for c in usable if c.patient not in test]
    orders, covering = _orders(rest, seeds)
    return DatasetSplit(
        test=tuple(sorted(c.case for c in usable if c.patient in test)),
        patients={c.case: c.patient for c in sorted(cases, key=lambda c: c.case)},
        order=orders,
        covering=covering,
        untouched=tuple(sorted(c.case for c in cases if c.patient in untouched)),
    )


def with_copies_joined(cases: Sequence[CaseInfo], contents: Mapping[str, Sequence[str]]) -> list[CaseInfo]:
    """The cases, the patients of those that show the same images made one: a copy of a test case must not train.

    Args:
        cases: cases of a dataset.
        contents: case -> content hashes of its channels; a case that is missing, or has none, is nobody's copy.
    """
    joined = list(cases)
    first: dict[tuple[str, ...], int] = {}  # content -> the first case that shows it
    for index, info in enumerate(cases):
        if content := tuple(contents.get(info.case, ())):
            kept, gone = joined[first.setdefault(content, index)].patient, joined[index].patient
            joined = [replace(c, patient=kept) if c.patient == gone else c for c in joined]
    return joined


def drawn_patients(cases: Sequence[CaseInfo], fraction: float) -> set[str]:
    """The patients who test: the same for the same cases and share.

    Raises:
        HSSLError: fewer than two patients.
    """
    patients = sorted({c.patient for c in cases})
    if len(patients) < 2:
        raise HSSLError(
            f"Two patients are needed to train and to score, one more to tune; left: {', '.join(patients) or 'none'}. "
            "Check `--patient_regex` and `--test_fraction`."
        )
    count = min(max(1, round(fraction * len(patients))), len(patients) - 1)
    return set(np.random.default_rng(TEST_SEED).permutation(patients)[:count].tolist())


def _orders(cases: Sequence[CaseInfo], seeds: Iterable[int]) -> tuple[dict[int, tuple[str, ...]], dict[int, int]]:
    """Order and number of covering cases of each seed."""
    found = {seed: training_order(cases, seed) for seed in seeds}
    names = {seed: tuple(c.case for c in order) for seed, (order, _) in found.items()}
    return names, {seed: covering for seed, (_, covering) in found.items()}


def training_order(cases: Sequence[CaseInfo], seed: int) -> tuple[list[CaseInfo], int]:
    """Cases in a random order by patient, those first that complete the set of labels, and how many these are."""
    by_patient: dict[str, list[CaseInfo]] = {}
    for case in sorted(cases, key=lambda c: c.case):
        by_patient.setdefault(case.patient, []).append(case)
    drawn = np.random.default_rng(seed).permutation(sorted(by_patient)).tolist()
    shuffled = [case for patient in drawn for case in by_patient[patient]]
    first = _covering(shuffled)
    chosen = {c.case for c in first}
    return first + [c for c in shuffled if c.case not in chosen], len(first)


def _covering(cases: Sequence[CaseInfo]) -> list[CaseInfo]:
    """The earliest case that shows most of the labels not yet shown, again and again until all are."""
    missing = set().union(*(c.labels for c in cases))
    chosen: list[CaseInfo] = []
    while missing:
        best = max(cases, key=lambda c: len(c.labels & missing))  # max keeps the earliest of equals
        chosen.append(best)
        missing -= best.labels
    return chosen


def fixed_splits(
    folder: Path,
    cases: Mapping[str, Sequence[CaseInfo]],
    test_fraction: float,
    seeds: Sequence[int],
    tune: bool = False,
) -> dict[str, DatasetSplit]:
    """Splits of a benchmark: those in its folder, completed by datasets and seeds that it lacks; nothing is written.

    Args:
        folder: the benchmark's folder.
        cases: dataset name -> its labelled cases.
        test_fraction: share of patients that test, for datasets that are new.
        seeds: seeds that are needed.
        tune: score validation cases instead: the patients who test without it, in any of the datasets, are left
            untouched in all.

    Raises:
        HSSLError: a test case of the file is gone, a case has come that the file does not know, the file was drawn with
            the other `tune`, or a dataset that is new makes a patient of the others untouched.
    """
    path = folder / SPLITS_FILE
    splits = read_splits(folder) if path.is_file() else {}
    _check_mode(splits, tune, path)
    # one person may be in several datasets: who tests in one of them is left alone in all
    untouched = {split.patients[case] for split in splits.values() for case in split.untouched}
    if tune:
        untouched |= {p for infos in cases.values() for p in drawn_patients(infos, test_fraction)}
    for dataset_name, infos in cases.items():
        if dataset_name not in splits:
            splits[dataset_name] = make_split(infos, test_fraction, seeds, untouched)
            continue
        split = splits[dataset_name]
        _check_cases(split, infos, dataset_name, path)
        rest = [c for c in infos if c.case not in split.kept_out]
        orders, covering = _orders(rest, [s for s in seeds if s not in split.order])
        splits[dataset_name] = replace(split, order={**split.order, **orders}, covering={**split.covering, **covering})
    _check_untouched(splits, untouched, path)
    return splits


def write_splits(folder: Path, splits: Mapping[str, DatasetSplit]) -> None:
    """Keep the splits of a benchmark."""
    write_json(folder / SPLITS_FILE, {name: to_json(split) for name, split in splits.items()})


def _check_mode(splits: Mapping[str, DatasetSplit], tune: bool, path: Path) -> None:
    if splits and any(split.untouched for split in splits.values()) != tune:
        was, now = ("without", "with") if tune else ("with", "without")
        raise HSSLError(f"{path} was drawn {was} --tune. Use another folder with `-o` for a benchmark {now} it.")


def _check_untouched(splits: Mapping[str, DatasetSplit], untouched: Collection[str], path: Path) -> None:
    """A dataset that is added later may show test patients whom an earlier one has trained on."""
    for name, split in splits.items():
        used = {p for case, p in split.patients.items() if case not in split.untouched} & set(untouched)
        if used:
            raise HSSLError(
                f"{', '.join(sorted(used))} would test in a dataset that is new, and {path} uses them in {name}. "
                "To tune on all of them start in another folder with `-o`."
            )


def read_splits(folder: Path) -> dict[str, DatasetSplit]:
    """The splits of a benchmark.

    Raises:
        HSSLError: there are none.
    """
    path = folder / SPLITS_FILE
    return parse(dict[str, DatasetSplit], read_json(path, "Run `hssl benchmark run` first."), path)


def _check_cases(split: DatasetSplit, infos: Sequence[CaseInfo], dataset_name: str, path: Path) -> None:
    known, there = set(split.patients), {c.case for c in infos}
    if known != there:
        gone, new = sorted(known - there), sorted(there - known)
        raise HSSLError(
            f"{dataset_name} has changed since {path} was written: gone {', '.join(gone) or 'none'}, new "
            f"{', '.join(new) or 'none'}. The test set is never changed: restore the dataset, or start a benchmark in "
            "another folder with `-o`."
        )
