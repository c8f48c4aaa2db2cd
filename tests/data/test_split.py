from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hssl_nnunet.corpus.manifest import ImageRow
from hssl_nnunet.data.split import held_out_rows

TEMPLATE = ImageRow(0, "Dataset001_Toy", "", 0, "", True, "-", "-", (1.0, 1.0, 1.0), (1, 1, 1), ("toy",))


def rows_of(patients: dict[int, list[str]]) -> list[ImageRow]:
    """Two images of each patient, domain -> patients."""
    return [
        replace(TEMPLATE, domain=domain, case=f"{domain}_{patient}_{visit}", patient=patient)
        for domain, names in patients.items()
        for patient in names
        for visit in range(2)
    ]


def names(count: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_on_both_sides_in_any_domain(seed: int) -> None:
    rows = rows_of({0: names(20), 1: names(12)[::-1], 2: names(7, "other")})
    held_out = held_out_rows(rows, 0.25, seed)
    inside = {rows[i].patient for i in held_out}
    assert inside and inside.isdisjoint(row.patient for i, row in enumerate(rows) if i not in held_out)


@pytest.mark.parametrize(("fraction", "expected"), [(0.1, 2), (0.25, 5), (0.5, 10), (0.99, 19), (0.001, 1)])
def test_share_of_a_domains_patients(fraction: float, expected: int) -> None:
    rows = rows_of({0: names(20)})
    assert len({rows[i].patient for i in held_out_rows(rows, fraction, 0)}) == expected


@pytest.mark.parametrize("seed", range(5))
def test_every_domain_of_two_patients_gives_one_and_keeps_one(seed: int) -> None:
    rows = rows_of({0: names(40, "a"), 1: names(2, "b"), 2: names(3, "c"), 3: ["alone"]})
    held_out = held_out_rows(rows, 0.9, seed)
    for domain in (0, 1, 2):
        there = {i for i, row in enumerate(rows) if row.domain == domain}
        assert there & held_out and there - held_out
    assert "alone" not in {rows[i].patient for i in held_out}


def test_nothing_is_held_out_when_the_fraction_is_0() -> None:
    assert held_out_rows(rows_of({0: names(9)}), 0.0, 0) == set()


def test_the_draw_follows_the_seed_and_not_the_order_of_the_rows() -> None:
    rows = rows_of({0: names(30), 1: names(30, "q")})
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    draws = [{rows[i].case for i in held_out_rows(rows, 0.2, seed)} for seed in range(4)]
    assert {shuffled[i].case for i in held_out_rows(shuffled, 0.2, 2)} == draws[2]
    assert len({frozenset(draw) for draw in draws}) == 4


def test_a_small_domain_whose_patients_are_all_in_a_large_one_keeps_one_to_train_on() -> None:
    large = [replace(TEMPLATE, domain=0, patient=f"p{i}", case=f"p{i}") for i in range(20)]
    small = [replace(row, domain=1) for row in large[:3]]
    for seed in range(300):
        held_out = held_out_rows(large + small, 0.5, seed)
        assert {20, 21, 22} - held_out and {20, 21, 22} & held_out


def test_a_domain_gives_nobody_who_is_the_last_one_of_another() -> None:
    rows = rows_of({0: ["a", "b"], 1: ["a"], 2: ["b"]})
    assert held_out_rows(rows, 0.5, 0) == set()


def held_out_by_sets(rows: list[ImageRow], fraction: float, seed: int) -> set[int]:
    """The same draw, slowly: the rules of `held_out_rows` as sets, compared anew for every patient."""
    rng, held_out = np.random.default_rng(seed), set()
    patients = {d: {row.patient for row in rows if row.domain == d} for d in sorted({row.domain for row in rows})}
    for there in patients.values():
        wanted = max(1, round(fraction * len(there))) if len(there) > 1 else 0
        for patient in rng.permutation(sorted(there - held_out)).tolist():
            kept = [others - held_out - {patient} for others in patients.values() if patient in others]
            if len(held_out & there) < wanted and all(kept):
                held_out.add(patient)
    return {index for index, row in enumerate(rows) if row.patient in held_out}


@pytest.mark.parametrize("seed", range(8))
def test_counting_draws_what_comparing_sets_draws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    everyone = names(60)
    rows = rows_of({d: rng.choice(everyone, size=rng.integers(1, 25), replace=False).tolist() for d in range(7)})
    for fraction in (0.05, 0.3, 0.8):
        assert held_out_rows(rows, fraction, seed) == held_out_by_sets(rows, fraction, seed)
