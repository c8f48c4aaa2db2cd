"""The scripts in benchmarks/: they score as a benchmark does, end well, measure its intervals, and name files alike."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from math import nan
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from made_runs import noise, record

from hssl_nnunet.benchmark.intervals import crossed_interval
from hssl_nnunet.benchmark.records import write_record
from hssl_nnunet.benchmark.report.drawing import CSS_COLOURS
from hssl_nnunet.benchmark.splits import DatasetSplit, write_splits
from hssl_nnunet.files import read_json, write_json

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
DATASET = "Dataset001_A"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script as a module, by name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_a_case_in_which_nothing_is_to_find_is_scored_as_in_a_record(script: Callable[[str], ModuleType]) -> None:
    points = script("repeats").points
    assert points({"1": {"Dice": nan}, "2": {"Dice": nan}}) == 100.0
    assert points({"1": {"Dice": 0.5}, "2": {"Dice": nan}, "3": {"Dice": 0.0}}) == 25.0


def test_where_every_case_is_labelled_nobody_is_left_to_choose_values_on(
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, out = script("validation_dice"), tmp_path / "out.json"
    write_record(tmp_path, record("hssl", 0, [0.5], budget="100%"))
    split = DatasetSplit(test=("p00_0",), patients={"train_0": "t", "p00_0": "p"}, order={0: ("train_0",)})
    write_splits(tmp_path, {DATASET: split})
    monkeypatch.setattr("sys.argv", ["validation_dice.py", str(tmp_path), "--out", str(out)])
    module.main()
    assert f"{DATASET}, 100%, seed 0: every patient is labelled" in capsys.readouterr().out and not out.exists()


def test_the_percentile_bootstrap_covers_less_where_few_seeds_vary_and_agrees_where_many_do(
    script: Callable[[str], ModuleType],
) -> None:
    module, rng = script("interval_coverage"), np.random.default_rng(5)
    few = [noise(rng, 3, 20, of_seeds=4.0) for _ in range(300)]
    assert module.coverage([module.bootstrap_interval(d, draws=400) for d in few]) < 0.89
    assert module.coverage([crossed_interval([d]) for d in few]) > 0.91
    many = noise(rng, 30, 60, of_seeds=4.0)
    assert module.bootstrap_interval(many) == pytest.approx(crossed_interval([many]), abs=0.35)


def test_the_bootstrap_resamples_both_levels_like_a_slow_loop(script: Callable[[str], ModuleType]) -> None:
    bootstrap_interval = script("interval_coverage").bootstrap_interval
    d = noise(np.random.default_rng(2), 4, 6, of_seeds=3.0)
    rng = np.random.default_rng(9)
    slow = [d[rng.integers(0, 4, 4)][:, rng.integers(0, 6, 6)].mean() for _ in range(10_000)]
    assert bootstrap_interval(d) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.15)
    assert bootstrap_interval(d) == bootstrap_interval(d, seed=0) != bootstrap_interval(d, seed=1)


def test_a_file_is_called_as_it_is_named_or_as_its_corpus_or_by_its_stem(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    of_run = Path("results/Dataset900_Limbs/nnUNetTrainerHSSLPretrain__nnUNetPlans__3d_fullres/fold_all/w.safetensors")
    found = script("common").named_files(["hssl.safetensors", f"ours={of_run}", str(of_run)])
    assert found == {"hssl": Path("hssl.safetensors"), "ours": of_run, "Dataset900_Limbs": of_run}


def test_a_sign_of_equality_in_a_path_is_part_of_it(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1").mkdir()
    Path("lr=0.1/w.safetensors").touch()
    assert script("common").named_files(["lr=0.1/w.safetensors"]) == {"w": Path("lr=0.1/w.safetensors")}
    assert script("common").named_files(["low=lr=0.1/w.safetensors"]) == {"low": Path("lr=0.1/w.safetensors")}


def test_two_of_one_name_are_refused(script: Callable[[str], ModuleType]) -> None:
    with pytest.raises(SystemExit, match="a/w.pth and b/w.pth are both called w. Name one as `NAME=PATH`"):
        script("common").named_files(["a/w.pth", "b/w.pth"])


def test_arms_of_two_reports_differ_as_within_one(script: Callable[[str], ModuleType]) -> None:
    module, report = script("compare_reports"), SCRIPTS / "results" / "benchmark_cpu_voxel.json"
    found = module.compared(*(module.Side((report,), arm, "5%") for arm in ("hssl", "scratch")))["targets"]
    own = read_json(report)
    compared = {c["dataset_name"]: c for c in own["comparisons"] if (c["arm"], c["baseline"]) == ("hssl", "scratch")}
    (compared["mean"],) = [c for c in own["overall"] if (c["arm"], c["baseline"]) == ("hssl", "scratch")]
    assert found.keys() == compared.keys()
    for name, difference in found.items():
        for key in ("difference", "low", "high"):  # Dice by patient is rounded there
            assert difference[key] == pytest.approx(compared[name][key], abs=0.05), (name, key)


def test_a_side_may_be_of_several_files(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    module, report = script("compare_reports"), SCRIPTS / "results" / "benchmark_cpu_voxel.json"
    names = sorted({run["dataset_name"] for run in read_json(report)["runs"]})
    for half, chosen in (("a", names[:1]), ("b", names[1:])):
        runs = [run for run in read_json(report)["runs"] if run["dataset_name"] in chosen]
        write_json(tmp_path / f"{half}.json", {"runs": runs})
    other = module.Side.from_text(f"{report}:scratch:5%")
    parted = module.Side.from_text(f"{tmp_path / 'a.json'},{tmp_path / 'b.json'}:hssl:5%")
    assert module.compared(parted, other) == module.compared(module.Side.from_text(f"{report}:hssl:5%"), other)
    with pytest.raises(SystemExit, match="is in more than one file"):
        module.compared(module.Side.from_text(f"{report},{report}:hssl:5%"), other)


def test_runs_tested_on_different_patients_are_not_compared(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    module = script("compare_reports")
    for name, patient in (("a", "p1"), ("b", "p2")):
        run = {"dataset_name": DATASET, "arm": name, "budget": "5%", "seed": 0, "device": "cpu", "dice": 50}
        write_json(tmp_path / f"{name}.json", {"runs": [{**run, "dice_by_patient": {patient: 50}}]})
    sides = [module.Side.from_text(f"{tmp_path / name}.json:{name}:5%") for name in ("a", "b")]
    with pytest.raises(SystemExit, match=f"{DATASET}: the runs were tested on different patients"):
        module.compared(*sides)


def test_a_comparison_is_drawn_where_its_numbers_are(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    def found(middle: float) -> dict[str, object]:
        return {"difference": middle, "low": middle - 1, "high": middle + 2, "dice": [[80.0, 70.0], [79.0, 71.0]]}

    mean = {"difference": 3.0, "low": 1.0, "high": 5.0}
    path = tmp_path / "out.svg"
    arms = {name: {DATASET: found(middle), "mean": mean} for name, middle in (("one", 0.0), ("two", 4.0))}
    script("draw_differences").draw(arms, "points", path)
    first = path.read_text(encoding="utf-8")
    assert all(f">{word}<" in first for word in ("one", "two", "A", "mean of 1", "points"))
    assert all(colour not in first for colour in CSS_COLOURS)  # nothing is left of the page's own
    script("draw_differences").draw(arms, "points", path)
    assert path.read_text(encoding="utf-8") == first and list(tmp_path.iterdir()) == [path]
