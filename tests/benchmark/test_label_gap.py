"""Few labels against many: whom an arm is compared with, on which runs, and what is planted is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_runs import arm, noise

from hssl_nnunet.benchmark.intervals import Floats
from hssl_nnunet.benchmark.label_gap import LabelGap, label_gaps
from hssl_nnunet.benchmark.records import RunRecord
from hssl_nnunet.errors import HSSLError

CASES = {"5%": 3, "20%": 8, "100%": 40}


def runs(name: str, points: Floats, budget: str, dataset_name: str = "Dataset001_A") -> list[RunRecord]:
    """Runs of an arm; the labelled cases of a small budget are the first ones of a larger one."""
    return [
        replace(r, training_cases=tuple(f"train_{r.seed}_{k}" for k in range(CASES[budget])))
        for r in arm(name, points, budget=budget, dataset_name=dataset_name)
    ]


def only(gaps: list[LabelGap], name: str, budget: str) -> LabelGap:
    (found,) = [g for g in gaps if (g.arm, g.budget) == (name, budget)]
    return found


def test_what_is_planted_is_found_and_its_measure_beside_it() -> None:
    rng = np.random.default_rng(0)
    full = 80 + noise(rng, 3, 20, 0.5, 0.5)
    lacking = runs("scratch", full - 9 + rng.normal(0, 0.5, full.shape), "5%")
    seeded = [*runs("hssl", full - 2, "5%"), *runs("hssl", full + 1, "20%")]
    records = [*lacking, *seeded, *runs("scratch", full, "100%")]
    gaps = label_gaps(records)
    assert {(g.baseline, g.most) for g in gaps} == {("scratch", "100%")}
    ours = only(gaps, "hssl", "5%")
    assert (ours.difference, ours.low, ours.high) == pytest.approx((-2, -2, -2))
    assert only(gaps, "hssl", "20%").difference == pytest.approx(1)
    itself = only(gaps, "scratch", "5%")
    assert itself.low < -9 < itself.high < -8
    assert not [g for g in gaps if g.budget == "100%"]


def test_most_is_by_labelled_cases_and_no_smaller_budget_of_the_baseline_is_compared() -> None:
    points = np.full((3, 5), 70.0)
    few, more = runs("vanilla", points, "5%"), runs("hssl", points + 3, "20%")
    assert label_gaps([*few, *more]) == []  # the baseline has fewer labels than the arm
    by_count = [replace(r, budget="40") for r in runs("vanilla", points, "100%")]
    (gap,) = label_gaps([*few, *by_count])
    assert (gap.arm, gap.budget, gap.most, gap.difference) == ("vanilla", "5%", "40", 0)


def test_only_shared_seeds_count_and_one_seed_is_told() -> None:
    points = np.arange(15, dtype=float).reshape(3, 5)
    (gap,) = label_gaps([*runs("hssl", points, "5%"), *runs("scratch", points[:1] + 4, "100%")])
    assert gap.seeds == ((0,),) and gap.difference == pytest.approx(-4)
    nobody = [replace(r, seed=9) for r in runs("scratch", points[:1], "100%")]
    assert label_gaps([*runs("hssl", points, "5%"), *nobody]) == []


def test_the_mean_over_datasets_comes_first_and_weighs_them_equally() -> None:
    rng, records = np.random.default_rng(1), []
    for name, patients, lack in (("Dataset001_A", 30, 1.0), ("Dataset002_B", 4, 5.0)):
        full = rng.uniform(50, 90, (2, patients))
        records += [*runs("hssl", full - lack, "5%", name), *runs("scratch", full, "100%", name)]
    mean, *each = label_gaps(records)
    assert (mean.datasets, mean.difference) == (("Dataset001_A", "Dataset002_B"), pytest.approx(-3))
    assert [(g.datasets, g.difference) for g in each] == [
        (("Dataset001_A",), pytest.approx(-1)),
        (("Dataset002_B",), pytest.approx(-5)),
    ]


def test_another_test_set_is_refused() -> None:
    points = np.full((1, 5), 70.0)
    other = [replace(r, scores=r.scores[1:]) for r in runs("scratch", points, "100%")]
    with pytest.raises(HSSLError, match="differ in test cases"):
        label_gaps([*runs("hssl", points, "5%"), *other])
