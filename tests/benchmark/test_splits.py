"""Splits: by patient, nested, every label, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hssl_nnunet.benchmark.splits import (
    SPLITS_FILE,
    CaseInfo,
    DatasetSplit,
    budget_cases,
    drawn_patients,
    fixed_splits,
    make_split,
    training_order,
    with_copies_joined,
    write_splits,
)
from hssl_nnunet.errors import HSSLError


def cases(patients: int, per_patient: int = 2, rare: int = 7) -> list[CaseInfo]:
    """`rare` is the only patient that shows label c."""
    return [
        CaseInfo(case=f"p{p:02}_{i}", patient=f"p{p:02}", labels=frozenset("abc" if p == rare else "ab"))
        for p in range(patients)
        for i in range(per_patient)
    ]


def test_no_patient_is_on_both_sides_and_no_case_is_lost() -> None:
    infos = cases(20)
    split = make_split(infos, 0.3, [0, 1])
    patient = {c.case: c.patient for c in infos}
    test = {patient[c] for c in split.test}
    assert len(test) == 6 and split.patients == patient
    for order in split.order.values():
        assert test.isdisjoint(patient[c] for c in order)
        assert sorted([*split.test, *order]) == sorted(patient)


def test_the_test_set_does_not_depend_on_the_seeds_and_training_does() -> None:
    one, other = make_split(cases(20), 0.3, [0]), make_split(cases(20), 0.3, [5, 0])
    assert one.test == other.test and one.order[0] == other.order[0]
    assert other.order[5] != other.order[0]


def test_a_smaller_budget_is_part_of_a_larger_one() -> None:
    split = make_split(cases(40), 0.25, [3])
    subsets = [set(split.labelled(3, budget)) for budget in ("1", "5%", "10%", "20%", "100%")]
    assert all(small < large for small, large in zip(subsets, subsets[1:], strict=False))
    assert [len(s) for s in subsets] == [1, 3, 6, 12, 60]


def test_every_order_begins_with_every_label() -> None:
    infos = cases(12)
    rest = [c for c in infos if c.patient != "p03"]
    for seed in range(20):
        order, covering = training_order(rest, seed)
        assert order[0].labels == set("abc") and covering == 1
        assert sorted(c.case for c in order) == sorted(c.case for c in rest)


def test_no_budget_lacks_a_label_and_too_small_a_number_is_refused() -> None:
    infos = [CaseInfo(case=f"c{i:02}", patient=f"c{i:02}", labels=frozenset("abcd"[i % 4])) for i in range(40)]
    split = make_split(infos, 0.3, [0, 1])
    shown = {c.case: c.labels for c in infos}
    for seed in (0, 1):
        for budget in ("5%", "10%", "20%", "4"):
            assert set().union(*(shown[case] for case in split.labelled(seed, budget))) == set("abcd")
        assert len(split.labelled(seed, "5%")) == 4 and len(split.labelled(seed, "20%")) == 6
        with pytest.raises(HSSLError, match=f"Budget 3: with seed {seed} it takes 4 cases"):
            split.labelled(seed, "3")


def test_copies_of_an_image_are_one_patient() -> None:
    infos = [CaseInfo(case=c, patient=c[0], labels=frozenset("a")) for c in ("a1", "b1", "b2", "c1", "d1", "e1", "f1")]
    # c1 is b2 again, d1 is a1, b1 is d1: a, b, c and d are one; e1 has no image that could be read, f1 is itself
    contents = {"a1": ["x", "y"], "b1": ["x", "y"], "b2": ["z"], "c1": ["z"], "d1": ["x", "y"], "e1": [], "f1": ["x"]}
    joined = with_copies_joined(infos, contents)
    assert [c.case for c in joined] == [c.case for c in infos]
    assert [c.patient for c in joined] == ["a", "a", "a", "a", "a", "e", "f"]
    split = make_split(joined, 0.3, [0])
    train, test = ({split.patients[c] for c in part} for part in (split.order[0], split.test))
    assert train.isdisjoint(test)


def test_patients_stay_together_where_labels_allow() -> None:
    infos = [CaseInfo(case=f"{p}_{i}", patient=p, labels=frozenset("a")) for p in "abcdef" for i in range(3)]
    order = [c.patient for c in training_order(infos, 1)[0]]
    # the first one is chosen for its label; it leads its own patient
    assert [order[i : i + 3] for i in range(0, 18, 3)] == [[p] * 3 for p in dict.fromkeys(order)]


@pytest.mark.parametrize(("budget", "count"), [("5%", 7), ("0.1%", 1), ("100%", 140), ("9", 9)])
def test_budgets(budget: str, count: int) -> None:
    assert budget_cases(budget, 140) == count


@pytest.mark.parametrize(("budget", "available", "count"), [("5%", 19, 3), ("20%", 19, 4), ("5%", 2, 2), ("1", 19, 1)])
def test_a_share_never_undercuts_the_least_number_of_cases(budget: str, available: int, count: int) -> None:
    assert budget_cases(budget, available, 3) == count


@pytest.mark.parametrize("budget", ["0", "0%", "101%", "-3", "five", "5 %", ""])
def test_a_wrong_budget_says_what_is_expected(budget: str) -> None:
    with pytest.raises(HSSLError, match="expected a number of cases"):
        budget_cases(budget, 140)


def test_a_budget_beyond_the_cases_is_refused() -> None:
    with pytest.raises(HSSLError, match="99 labelled cases asked for, 14"):
        make_split(cases(10), 0.3, [0]).labelled(0, "99")


def test_one_patient_cannot_be_split() -> None:
    with pytest.raises(HSSLError, match="patient_regex"):
        make_split(cases(1), 0.3, [0])


def kept_splits(folder: Path, *args: Any, **kwargs: Any) -> dict[str, DatasetSplit]:
    """Splits as a run makes and keeps them."""
    splits = fixed_splits(folder, *args, **kwargs)
    write_splits(folder, splits)
    return splits


def test_tuning_scores_other_cases_and_leaves_the_test_set_alone(tmp_path: Path) -> None:
    final = kept_splits(tmp_path / "final", {"A": cases(20)}, 0.3, [0, 1])["A"]
    tuning = kept_splits(tmp_path / "tune", {"A": cases(20)}, 0.3, [0, 1], tune=True)["A"]
    assert tuning.untouched == final.test and tuning.patients == final.patients
    for order in tuning.order.values():
        groups = [set(tuning.untouched), set(tuning.test), set(order)]
        assert sorted(map(len, groups)) == [8, 12, 20]
        assert set.union(*groups) == set(final.patients)
    grown = kept_splits(tmp_path / "tune", {"A": cases(20)}, 0.3, [0, 1, 2], tune=True)["A"]
    assert grown.test == tuning.test and set(grown.order[2]) == set(tuning.order[0])


def test_who_tests_in_one_dataset_is_left_alone_in_all_that_tune(tmp_path: Path) -> None:
    datasets = {"A": cases(20), "B": cases(13), "C": cases(9)}
    finals = kept_splits(tmp_path / "final", datasets, 0.3, [0])
    testers = {split.patients[case] for split in finals.values() for case in split.test}
    for split in kept_splits(tmp_path / "tune", datasets, 0.3, [0], tune=True).values():
        used = {split.patients[case] for case in (*split.test, *split.order[0])}
        assert used.isdisjoint(testers) and used
        assert set(split.untouched) == {case for case, patient in split.patients.items() if patient in testers}


def test_a_dataset_that_would_test_patients_in_use_cannot_join_a_tuning(tmp_path: Path) -> None:
    kept_splits(tmp_path, {"A": cases(20)}, 0.3, [0], tune=True)
    with pytest.raises(HSSLError, match="would test in a dataset that is new.*in A"):
        kept_splits(tmp_path, {"A": cases(20), "C": cases(9)}, 0.3, [0], tune=True)


def test_who_is_left_alone_stays_so_in_a_dataset_that_joins_a_tuning(tmp_path: Path) -> None:
    """Of an earlier run's testers alone: the dataset that joins would draw others."""
    first = kept_splits(tmp_path, {"A": cases(20)}, 0.3, [0], tune=True)["A"]
    testers = {first.patients[case] for case in first.untouched}
    joins = [*(f"new{i}" for i in range(12)), *testers]
    infos = [CaseInfo(case=patient, patient=patient, labels=frozenset("a")) for patient in joins]
    assert testers - drawn_patients(infos, 0.1)
    joined = kept_splits(tmp_path, {"B": infos}, 0.1, [0], tune=True)["B"]
    assert testers <= set(joined.untouched) and testers.isdisjoint((*joined.test, *joined.order[0]))


@pytest.mark.parametrize("tune", [True, False])
def test_splits_of_the_other_kind_are_refused(tmp_path: Path, tune: bool) -> None:
    kept_splits(tmp_path, {"A": cases(20)}, 0.3, [0], tune=tune)
    with pytest.raises(HSSLError, match="another folder"):
        kept_splits(tmp_path, {"A": cases(20)}, 0.3, [0], tune=not tune)


def test_two_patients_cannot_tune(tmp_path: Path) -> None:
    with pytest.raises(HSSLError, match="one more to tune; left: p0"):
        kept_splits(tmp_path, {"A": cases(2, rare=0)}, 0.3, [0], tune=True)


def test_what_is_written_never_changes(tmp_path: Path) -> None:
    first = kept_splits(tmp_path, {"A": cases(20)}, 0.3, [0])
    text = (tmp_path / SPLITS_FILE).read_text()
    assert kept_splits(tmp_path, {"A": cases(20)}, 0.5, [0]) == first
    assert (tmp_path / SPLITS_FILE).read_text() == text
    grown = kept_splits(tmp_path, {"A": cases(20), "B": cases(9)}, 0.3, [0, 1])
    assert grown["A"].test == first["A"].test and grown["A"].order[0] == first["A"].order[0]
    assert set(grown["A"].order) == {0, 1} and set(grown) == {"A", "B"}
    assert kept_splits(tmp_path, {"B": cases(9)}, 0.3, [0]) == grown


def test_a_changed_dataset_is_refused_and_named(tmp_path: Path) -> None:
    kept_splits(tmp_path, {"A": cases(20)}, 0.3, [0])
    with pytest.raises(HSSLError, match="gone p19_0, p19_1, new none"):
        kept_splits(tmp_path, {"A": cases(19)}, 0.3, [0])
