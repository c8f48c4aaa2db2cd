"""Statistics: slow loops and libraries as oracles, coverage and p-values where the truth is known."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from math import isnan, nan

import numpy as np
import pytest
from made_runs import arm, noise, record, score
from scipy import stats

from hssl_nnunet.benchmark.convergence import Reach, curves
from hssl_nnunet.benchmark.intervals import Floats, crossed_interval, holm, wilcoxon_p
from hssl_nnunet.benchmark.pairing import DiceTable, Runs, dice_table
from hssl_nnunet.benchmark.records import RunRecord
from hssl_nnunet.benchmark.statistics import (
    Comparison,
    Ranking,
    compare_all,
    mean_ranks,
    overall,
    persons,
    seed_spread,
)
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.typed_json import parse, to_json


def covers(interval: tuple[float, float]) -> bool:
    return interval[0] <= 0 <= interval[1]


# patients, nan and pairing


def paired(ours: Runs, theirs: Runs) -> np.ndarray:
    """First minus second, (seeds, patients)."""
    return dice_table(ours, theirs).differences


def test_labels_are_averaged_in_a_case_then_cases_in_a_patient() -> None:
    scores = (
        score("p", "p_0", "a", 0.9),
        score("p", "p_0", "b", 0.5),
        score("p", "p_1", "a", 0.1),
        score("p", "p_1", "b", nan),
        score("p", "p_2", "a", nan),
        score("q", "q_0", "a", nan),
        score("q", "q_0", "b", nan),
        score("r", "r_0", "a", 0.0),
    )
    # p: the mean of (0.7, 0.1, 1), the last of a case in which nothing is to be found, and is not found
    scored = replace(record("hssl", 0, []), scores=scores)
    assert scored.patient_dice == pytest.approx({"p": 0.6, "q": 1, "r": 0.0})


def test_what_is_computed_of_a_record_is_kept_with_it_and_not_written() -> None:
    scored = record("hssl", 0, [0.5, 0.25])
    assert scored.patient_dice is scored.patient_dice and scored.test_set is scored.test_set
    assert parse(RunRecord, to_json(scored), "it") == scored
    assert replace(scored, scores=scored.scores[:1]).patient_dice == {"p00": 0.5}


def test_differences_are_of_shared_seeds() -> None:
    ours = [record("hssl", 2, [0.9, 0.8, 0.7]), record("hssl", 1, [0.6, 0.5, 0.4]), record("hssl", 7, [0, 0, 0])]
    theirs = [record("vanilla", 1, [0.5, 0.3, 0.5]), record("vanilla", 2, [0.5, 0.5, 0.5])]
    table = dice_table(ours, theirs)
    assert table.seeds == (1, 2) and table.patients == ("p00", "p01", "p02")
    np.testing.assert_allclose(paired(ours, theirs), [[10, 20, -10], [40, 30, 20]], atol=1e-9)
    np.testing.assert_allclose(paired(theirs, ours), -paired(ours, theirs))


def test_who_rightly_finds_nothing_is_ahead_of_who_finds_something() -> None:
    """nan, as nnU-Net scores it, must not take the patient out of the comparison."""
    ours, theirs = [record("hssl", 0, [0.7, nan])], [record("vanilla", 0, [0.7, 0.0])]
    np.testing.assert_allclose(paired(ours, theirs), [[0, 100]], atol=1e-9)


def test_another_test_set_is_refused_and_named() -> None:
    ours, theirs = [record("hssl", 0, [0.5, 0.5])], [record("vanilla", 0, [0.5, 0.5, 0.5])]
    with pytest.raises(HSSLError, match=r"vanilla/seed_0 and Dataset001_A/5%/hssl/seed_0 differ in test.*p02_0"):
        paired(ours, theirs)
    with pytest.raises(HSSLError, match="test cases"):
        compare_all([*ours, *theirs])
    moved = replace(ours[0], seed=1, scores=(*ours[0].scores[:1], score("p00", "p01_0", "a", 0.5)))
    with pytest.raises(HSSLError, match="test cases"):
        paired([ours[0], moved], [record("vanilla", 0, [0.5, 0.5]), record("vanilla", 1, [0.5, 0.5])])


def test_runs_that_are_no_pair_are_refused() -> None:
    one = record("hssl", 0, [0.5])
    with pytest.raises(HSSLError, match="No seed is shared.*--seeds"):
        paired([one], [record("vanilla", 1, [0.5])])
    with pytest.raises(HSSLError, match="labelled cases.*other"):
        paired([one], [replace(record("vanilla", 0, [0.5]), training_cases=("other",))])
    with pytest.raises(HSSLError, match="one run a seed"):
        paired([one, one], [record("vanilla", 0, [0.5])])
    with pytest.raises(HSSLError, match="no case is scored"):
        paired([record("hssl", 0, [])], [record("vanilla", 0, [])])


# intervals


@pytest.mark.parametrize(("seeds", "patients"), [(2, 2), (3, 20), (5, 7)])
def test_the_interval_is_that_of_a_two_way_analysis_of_variance(seeds: int, patients: int) -> None:
    d = noise(np.random.default_rng(seeds), seeds, patients, of_seeds=9.0, rest=1.0) + 3
    d += 9 * np.random.default_rng(1).normal(
        size=patients
    )  # both effects well above the rest: no component is cut at 0
    mean = sum(d[s, p] for s, p in product(range(seeds), range(patients))) / d.size
    of_seeds = patients * sum((d[s].mean() - mean) ** 2 for s in range(seeds)) / (seeds - 1)
    of_patients = seeds * sum((d[:, p].mean() - mean) ** 2 for p in range(patients)) / (patients - 1)
    df = (seeds - 1) * (patients - 1)
    cells = product(range(seeds), range(patients))
    rest = sum((d[s, p] - d[s].mean() - d[:, p].mean() + mean) ** 2 for s, p in cells) / df
    variance = (of_seeds + of_patients - rest) / d.size
    freedom = (variance * d.size) ** 2 / (of_seeds**2 / (seeds - 1) + of_patients**2 / (patients - 1) + rest**2 / df)
    expected = stats.t.interval(0.95, max(freedom, min(seeds, patients) - 1), mean, variance**0.5)
    assert min(of_seeds, of_patients) > rest
    assert crossed_interval([d]) == pytest.approx(expected)


def test_where_one_level_does_not_vary_the_interval_is_students_over_the_other() -> None:
    values = np.random.default_rng(0).normal(size=9)
    expected = stats.t.interval(0.95, 8, values.mean(), stats.sem(values))
    assert crossed_interval([np.tile(values, (4, 1))]) == pytest.approx(expected)
    assert crossed_interval([np.tile(values[:, None], (1, 6))]) == pytest.approx(expected)
    assert crossed_interval([values[None]]) == pytest.approx(expected)  # one seed


def test_no_component_of_the_variance_is_below_zero() -> None:
    rng = np.random.default_rng(8)
    patients, rest = rng.normal(size=9), rng.normal(size=(4, 9))
    rest -= rest.mean(1, keepdims=True)  # seeds differ less than the rest would make them differ
    d = patients + rest
    expected = stats.t.interval(0.95, 8, d.mean(), stats.sem(d.mean(0)))
    assert crossed_interval([d]) == pytest.approx(expected)
    hits = [covers(crossed_interval([rng.normal(size=(3, 20))])) for _ in range(300)]
    assert np.mean(hits) > 0.95


def test_two_seeds_and_two_patients_leave_one_degree_of_freedom() -> None:
    seeds, patients = np.array([[1.0], [-1.0]]), np.array([1.0, -1.0])
    d = 1.01 * seeds + 1.01 * patients + seeds * patients  # Satterthwaite's formula gives 0.35
    expected = stats.t.interval(0.95, 1, 0, (2 * 1.01**2 - 1) ** 0.5)
    assert crossed_interval([d]) == pytest.approx(expected)


def test_tables_of_equal_noise_average_it_out() -> None:
    d = np.tile(np.random.default_rng(0).normal(size=500), (3, 1))
    low, high = crossed_interval([d])
    low4, high4 = crossed_interval([d, -d, d, -d])
    assert (high4 - low4) / (high - low) == pytest.approx(1 / 2, rel=0.01) and low4 == pytest.approx(-high4)


def test_degenerate_tables() -> None:
    assert crossed_interval([np.zeros((3, 5))]) == (0, 0)
    assert crossed_interval([np.full((3, 5), 2.0)]) == pytest.approx((2, 2))
    assert all(isnan(end) for end in crossed_interval([np.ones((3, 5)), np.ones((3, 1))]))


@pytest.mark.parametrize(("seeds", "patients"), [(3, 20), (5, 40)])
@pytest.mark.parametrize("of_seeds", [0.0, 1.0, 2.0, 4.0])
def test_the_interval_covers_the_truth(seeds: int, patients: int, of_seeds: float) -> None:
    rng = np.random.default_rng(int(of_seeds))
    hits = [covers(crossed_interval([noise(rng, seeds, patients, of_seeds)])) for _ in range(1000)]
    assert 0.91 < np.mean(hits) < 0.98


def test_the_interval_covers_the_truth_over_datasets() -> None:
    rng = np.random.default_rng(3)
    hits = [covers(crossed_interval([noise(rng, 3, p, 3.0) for p in (10, 20, 30)])) for _ in range(1000)]
    assert 0.93 < np.mean(hits) < 0.98


# p-values


def test_p_is_the_share_of_sign_flips_at_least_as_extreme() -> None:
    d = np.random.default_rng(4).normal(0.4, 1, size=(2, 9))
    values = d.mean(0)
    ranks = stats.rankdata(abs(values))
    flips = [abs(sum(s * r for s, r in zip(signs, ranks, strict=True))) for signs in product((-1, 1), repeat=9)]
    observed = abs(sum(np.sign(values) * ranks))
    assert wilcoxon_p(d) == pytest.approx(np.mean([flip >= observed - 1e-9 for flip in flips]))


def test_zeros_are_ranked_and_their_ranks_dropped() -> None:
    values = np.array([[0.0] * 20 + list(range(1, 11))])
    mean = (30 * 31 - 20 * 21) / 4
    variance = (30 * 31 * 61 - 20 * 21 * 41) / 24
    assert wilcoxon_p(values) == pytest.approx(2 * stats.norm.sf(mean / variance**0.5), rel=1e-6)


def test_p_is_uniform_when_there_is_no_difference() -> None:
    rng = np.random.default_rng(11)
    p = [wilcoxon_p(noise(rng, 3, 25, of_seeds=0.0)) for _ in range(600)]
    assert stats.kstest(p, "uniform").pvalue > 0.05


def test_p_keeps_its_level_with_patients_of_equal_dice() -> None:
    rng = np.random.default_rng(12)
    d = [rng.normal(size=(1, 20)) * (rng.random(20) > 0.4) for _ in range(500)]
    assert 0.02 < np.mean([wilcoxon_p(x) < 0.05 for x in d]) < 0.08
    assert wilcoxon_p(np.zeros((3, 1))) == 1 and wilcoxon_p(np.ones((3, 1))) == 1


def test_holm_by_hand_and_never_below_p() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    p = np.random.default_rng(0).random(40).tolist()
    assert all(after >= before for before, after in zip(p, holm(p), strict=True)) and holm([]) == []


def test_without_statsmodels_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsmodels.stats.multitest", None)
    with pytest.raises(HSSLError, match=r'pip install "hssl_nnunet\[benchmark\]"'):
        holm([0.5])


# comparisons


def test_identical_arms_give_no_finding() -> None:
    points = 70 + noise(np.random.default_rng(0), 3, 20, 2.0)
    (c,) = compare_all([*arm("hssl", points), *arm("vanilla", points)])
    assert (c.p, c.p_holm, c.difference, c.low, c.high, c.verdict, c.finding) == (1, 1, 0, 0, 0, "tie", False)


def test_a_planted_gain_is_found_and_no_gain_is_not() -> None:
    rng = np.random.default_rng(1)
    records = []
    for gain, i in product((0, 3), range(50)):  # one family of 100 datasets
        vanilla = 70 + noise(rng, 3, 30, of_seeds=1.0, rest=3.0)
        ours = vanilla + gain + noise(rng, 3, 30, of_seeds=0.3, rest=2.5)
        name = f"Dataset{i:03}_{gain}"
        records += [*arm("hssl", ours, dataset_name=name), *arm("vanilla", vanilla, dataset_name=name)]
    found = [c for c in compare_all(records) if c.finding]
    assert sum(c.dataset_name.endswith("_3") for c in found) >= 45
    assert not [c for c in found if c.dataset_name.endswith("_0")]
    assert np.mean([c.difference for c in found]) == pytest.approx(3, abs=0.3)


def test_seeds_that_vary_make_p_reject_but_not_a_finding() -> None:
    rng = np.random.default_rng(2)
    names = [f"Dataset{i:03}" for i in range(150)]
    ours = [r for n in names for r in arm("hssl", 50 + noise(rng, 3, 20, of_seeds=4.0), dataset_name=n)]
    theirs = [r for n in names for r in arm("vanilla", np.full((3, 20), 50.0), dataset_name=n)]
    results = [replace(c, p_holm=c.p) for c in compare_all([*ours, *theirs])]  # each as if it were the only one
    assert np.mean([c.p < 0.05 for c in results]) > 0.25
    assert np.mean([c.finding for c in results]) < 0.1


def test_two_seeds_make_no_finding() -> None:
    gain = np.linspace(9, 10, 12)
    for seeds, finding in ((1, False), (2, False), (3, True)):
        (c,) = compare_all([*arm("hssl", np.tile(50 + gain, (seeds, 1))), *arm("vanilla", np.full((seeds, 12), 50.0))])
        assert c.low > 9 and c.p_holm < 0.001 and c.finding == finding


def test_runs_of_unequal_length_make_no_finding() -> None:
    ours, theirs = arm("hssl", np.tile(60 + np.linspace(9, 10, 12), (3, 1))), arm("vanilla", np.full((3, 12), 50.0))
    longer = [replace(r, num_epochs=100) for r in ours]
    reshaped = [replace(r, num_epochs=25, num_iterations_per_epoch=20) for r in ours]  # as many steps
    last_only = [*ours[:2], longer[2]]
    for runs, equal in ((ours, True), (longer, False), (reshaped, True), (last_only, False)):
        (c,), (o,) = compare_all([*runs, *theirs]), overall([*runs, *theirs])
        assert c.p_holm < 0.001 and c.low > 9
        assert (c.equal_length, c.finding, o.equal_length) == (equal, equal, equal)
    unshared = [*ours, replace(longer[0], seed=9)]
    assert compare_all([*unshared, *theirs])[0].finding  # its length does not count where its seed does not


@pytest.mark.parametrize("longer", ["Dataset001_A", "Dataset002_B"])
def test_one_dataset_of_unequal_length_makes_the_mean_unequal(longer: str) -> None:
    records = [
        record(name, 0, [0.5, 0.6], dataset)
        for name in ("scratch", "hssl")
        for dataset in ("Dataset001_A", "Dataset002_B")
    ]
    uneven = [replace(r, num_epochs=70) if (r.arm, r.dataset_name) == ("hssl", longer) else r for r in records]
    assert [o.equal_length for o in (*overall(records), *overall(uneven))] == [True, False]


def test_every_arm_meets_each_baseline_and_holm_is_within_it() -> None:
    rng = np.random.default_rng(3)
    places = [("Dataset001_A", "10%"), ("Dataset001_A", "5%"), ("Dataset002_B", "9")]
    records = [
        run
        for (dataset_name, budget), (name, gain) in product(places, (("vanilla", 0), ("scratch", 1), ("hssl", 3)))
        for run in arm(name, 60 + gain + noise(rng, 3, 12, 1.0), dataset_name=dataset_name, budget=budget)
    ]
    records = [r for r in records if (r.budget, r.arm) != ("9", "scratch")]
    got = compare_all(records)
    keys = [(c.baseline, c.dataset_name, c.budget, c.arm) for c in got]
    expected = [("vanilla", *place, name) for place in (places[1], places[0]) for name in ("hssl", "scratch")]
    expected += [("vanilla", *places[2], "hssl")]
    expected += [("scratch", *place, name) for place in (places[1], places[0]) for name in ("hssl", "vanilla")]
    assert keys == expected
    for baseline in ("vanilla", "scratch"):
        family = [c for c in got if c.baseline == baseline]
        assert [c.p_holm for c in family] == pytest.approx(holm([c.p for c in family]))
    forth = next(c for c in got if (c.baseline, c.arm) == ("vanilla", "scratch"))
    back = next(c for c in got if (c.baseline, c.arm) == ("scratch", "vanilla"))
    assert (forth.difference, forth.low, forth.p) == pytest.approx((-back.difference, -back.high, back.p))
    assert np.mean(forth.by_seed) == pytest.approx(forth.difference) and forth.patients == 12


@pytest.mark.parametrize(("gain", "verdict"), [(0.6, "win"), (0.4, "tie"), (-0.4, "tie"), (-0.6, "loss")])
def test_the_verdict_is_by_the_declared_margin(gain: float, verdict: str) -> None:
    (c,) = compare_all([*arm("hssl", np.full((2, 4), 50 + gain)), *arm("vanilla", np.full((2, 4), 50.0))])
    assert c.verdict == verdict


def test_unfinished_grids_give_what_there_is() -> None:
    assert compare_all([]) == [] and compare_all([record("hssl", 0, [0.5])]) == []
    assert compare_all([record("hssl", 0, [0.5]), record("vanilla", 1, [0.5])]) == []


# over datasets


def test_ranks_share_ties_and_are_of_the_arms_that_every_dataset_has() -> None:
    dice = {
        "A": {"hssl": 80.0, "mae": 70.0, "vanilla": 70.0, "simclr": 99.0},  # 1, 2.5, 2.5
        "B": {"hssl": 60.0, "mae": 75.0, "vanilla": 50.0},  # 2, 1, 3
    }
    records = [
        r for d, arms in dice.items() for n, v in arms.items() for r in arm(n, np.full((2, 3), v), dataset_name=d)
    ]
    ranking = Ranking(
        datasets=("A", "B"), seeds=((0, 1), (0, 1)), ranks={"hssl": 1.5, "mae": 1.75, "vanilla": 2.75}
    )  # fmt: skip
    assert mean_ranks(records) == {"5%": ranking}  # simclr has none, and takes no dataset away
    without = [r for r in records if (r.dataset_name, r.arm) != ("B", "mae")]
    assert mean_ranks(without)["5%"].ranks == {"hssl": 1.0, "vanilla": 2.0}
    assert mean_ranks([r for r in records if r.arm == "hssl" or r.dataset_name == "A" and r.arm == "mae"]) == {}


def test_ranks_stand_on_the_seeds_that_the_ranked_arms_share() -> None:
    tables = {"hssl": [90.0, 10.0, 10.0], "mae": [50.0, 50.0], "vanilla": [60.0, 40.0]}
    records = [r for n, v in tables.items() for r in arm(n, np.tile(np.array(v)[:, None], 4), dataset_name="A")]
    records += [r for n in tables for r in arm(n, np.full((1, 4), 50.0), dataset_name="B")]
    one_seed = [r for r in records if r.arm != "mae" or r.seed == 0]
    assert mean_ranks(records)["5%"].seeds == ((0, 1), (0,))
    assert mean_ranks(records)["5%"].ranks == {"hssl": 2.0, "mae": 2.0, "vanilla": 2.0}  # 50 each over seeds 0 and 1
    assert mean_ranks(one_seed)["5%"].ranks == {"hssl": 1.5, "mae": 2.5, "vanilla": 2.0}
    apart = [replace(r, seed=5) if (r.dataset_name, r.arm) == ("B", "mae") else r for r in records]
    assert mean_ranks(apart)["5%"].datasets == ("A",)


def test_overall_weighs_datasets_equally_and_is_narrower_than_each() -> None:
    rng = np.random.default_rng(6)
    tables = {"A": 4 + noise(rng, 3, 10, 1.0), "B": 1 + noise(rng, 2, 40, 1.0)}
    records = [r for d, t in tables.items() for r in arm("hssl", 50 + t, dataset_name=d)]
    records += [r for d in tables for r in arm("vanilla", np.full((3, tables[d].shape[1]), 50.0), dataset_name=d)]
    (result,) = overall(records)
    assert (result.budget, result.arm, result.baseline, result.datasets) == ("5%", "hssl", "vanilla", ("A", "B"))
    assert result.seeds == ((0, 1, 2), (0, 1))
    assert result.difference == pytest.approx((tables["A"].mean() + tables["B"].mean()) / 2)
    assert (result.low, result.high) == pytest.approx(crossed_interval(list(tables.values())))


def both(names: tuple[str, ...], differences: Floats, seeds: tuple[int, ...] = (0, 1, 2)) -> DiceTable:
    """A table whose first arm is better by `differences`."""
    return DiceTable(seeds, names, np.stack([50 + differences, np.full_like(differences, 50)]))


def test_patients_of_two_datasets_are_counted_once() -> None:
    names = tuple(f"p{i:02}" for i in range(10))
    d, e = (noise(np.random.default_rng(i), 3, 10, 1.0) for i in (0, 1))
    apart, shared = both(tuple("abcdefghij"), e), both(names, e)
    np.testing.assert_allclose(persons([both(names, d), apart]), [d, e])
    (merged,) = persons([both(names, d), shared])
    np.testing.assert_allclose(merged, (d + e) / 2)
    third = both(tuple("abcdefghij"), d)
    tables = persons([both(names, d), third, shared])  # the mean over three datasets, whatever is merged
    assert len(tables) == 2 and np.mean([t.mean() for t in tables]) == pytest.approx((2 * d.mean() + e.mean()) / 3)
    assert len(persons([both(names, d), both(names, e[:2], (0, 1))])) == 2  # other seeds


def test_the_interval_covers_the_truth_where_two_datasets_show_the_same_patients() -> None:
    rng, names = np.random.default_rng(4), tuple(f"p{i:02}" for i in range(20))
    merged, apart = [], []
    for _ in range(600):
        of_patients = 4 * rng.normal(size=20)
        pair = [of_patients + rng.normal(size=(3, 20)) for _ in range(2)]
        merged.append(covers(crossed_interval(persons([both(names, d) for d in pair]))))
        apart.append(covers(crossed_interval(pair)))
    assert 0.92 < np.mean(merged) < 0.98
    assert np.mean(apart) < 0.88


def test_the_spread_between_seeds() -> None:
    three, one = seed_spread([*arm("hssl", np.array([[50.0, 60], [55, 65], [63, 73]])), record("mae", 4, [0.5])])
    assert (three.mean, three.sd, three.seeds) == (pytest.approx(61), pytest.approx(43**0.5), (0, 1, 2))
    assert (one.arm, one.mean, one.seeds) == ("mae", 50, (4,)) and isnan(one.sd)


def test_the_first_epoch_at_the_baselines_final_dice() -> None:
    def runs(name: str, *values: tuple[float, ...]) -> list[RunRecord]:
        epochs = [tuple(zip((10, 20, 50), curve, strict=True)) for curve in values]
        return [record(name, seed, [0.5], epochs=e) for seed, e in enumerate(epochs)]

    records = runs("vanilla", (0.3, 0.65, 0.7), (0.3, 0.65, 0.5))  # 0.3, 0.65 and at last 0.6 on average
    records += runs("hssl", (0.7, 0.7, 0.7), (0.4, 0.52, 0.6), (0.9, 0.9, 0.9))
    records += runs("mae", (0.5, 0.5, 0.59), (0.5, 0.5, 0.59)) + runs("simclr", (0.9, 0.9, 0.9))
    place = ("Dataset001_A", "5%")
    found = curves(records, *place, ["hssl", "vanilla"])
    assert found is not None and found.seeds == (0, 1) and found.by_arm.keys() == {"vanilla", "hssl", "mae"}
    assert found.by_arm["hssl"] == pytest.approx({10: 0.55, 20: 0.61, 50: 0.65})  # without seed 2
    assert found.level("vanilla") == pytest.approx(0.6) and found.level("simclr") is None
    assert found.reach("hssl", "vanilla") == Reach(epoch=20, share=0.4)
    assert found.reach("mae", "vanilla") is None and found.reach("hssl", "simclr") is None
    assert found.reach("vanilla", "vanilla") == Reach(epoch=20, share=0.4)  # it wobbles
    assert found.reach("hssl", "mae") == Reach(epoch=20, share=0.4)
    only = curves(records, *place, ["simclr", "vanilla"])
    assert only is not None and only.seeds == (0,) and only.reach("simclr", "vanilla") == Reach(epoch=10, share=0.2)
    assert curves(records, *place, ["hssl", "unknown"]) is None and curves(records, *place, []) is None
    assert curves([replace(r, epochs=()) for r in records], *place, ["hssl"]) is None


def test_a_comparison_is_frozen() -> None:
    (c,) = compare_all([*arm("hssl", np.ones((2, 4))), *arm("vanilla", np.zeros((2, 4)))])
    assert isinstance(c, Comparison)
    with pytest.raises(AttributeError):
        c.p = 0.0  # type: ignore[misc]
