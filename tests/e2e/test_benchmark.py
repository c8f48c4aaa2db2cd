"""`hssl benchmark` through the command line: a small grid, killed on the way, finished by the same command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_tasks import FINETUNING, PLANS, PRETRAINING, TASKS, write_task

from hssl_nnunet.benchmark.leakage import checked
from hssl_nnunet.benchmark.records import read_records
from hssl_nnunet.benchmark.splits import read_splits
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RAW
from hssl_nnunet.transfer.weights_file import file_sha256, read_metadata

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]
pytest.importorskip("monai", reason='needs pip install "hssl_nnunet[benchmark]"')
ARMS = ("vanilla", "scratch", "hssl", "single_domain", "continued", "encoder_only")


DATASET = "Dataset061_Ball"


def grid(environment: dict[str, str], run: Callable[..., str], folder: Path) -> list[str]:
    """Preprocess two tiny tasks; the words of a benchmark of every kind of arm."""
    for number, (name, shape, spacing) in TASKS.items():
        write_task(folder / f"Task{number}_{name}", shape, spacing)
        run("hssl", "convert_msd", "-i", f"Task{number}_{name}")
    run("hssl", "plan_and_preprocess", "-d", *TASKS, "--preset", "cpu", "-np", 1)
    finetuning = {key: value for key, value in FINETUNING.items() if key != "seed"} | {"full_validation_every": 1}
    values = {"pretraining": {**PRETRAINING, "num_epochs": 1}, "finetuning": finetuning}
    (folder / "values.json").write_text(json.dumps(values))
    options = ["-d", 61, "--domains", *TASKS, "--budgets", "2", "--seeds", 1, "--arms", *ARMS, "-p", PLANS]
    return [*map(str, options), "-o", "bench", "--values", "values.json", "-device", "cpu"]


def killed(environment: dict[str, str], words: list[str], folder: Path) -> None:
    """Start a benchmark, and kill all of it once a record is there."""
    command = [str(Path(sys.executable).parent / "hssl"), "benchmark", "run", *words]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True, **silent)
    deadline = time.monotonic() + 280
    while not read_records(folder / "bench") and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def check_records(folder: Path, split: dict) -> None:
    records = {r.arm: r for r in read_records(folder)}
    assert {r.training_cases for r in records.values()} == {tuple(sorted(split["order"]["0"][:2]))}
    for record in records.values():
        assert [s.case for s in record.scores] == split["test"] and [e.epoch for e in record.epochs] == [1]
        assert record.train_s > 0
    hashes = {arm: record.weights_sha256 for arm, record in records.items()}
    assert hashes["vanilla"] is hashes["scratch"] is None
    assert hashes["hssl"] == hashes["encoder_only"] != hashes["single_domain"]
    compared = {arm: record.leakage for arm, record in records.items()}
    assert compared["vanilla"] is compared["scratch"] is None
    for arm in ("hssl", "encoder_only", "single_domain", "continued"):
        assert compared[arm].images > 0 and compared[arm].test_cases == len(split["test"])


def check_weights(folder: Path, split: dict) -> None:
    weights = {path.parts[-4].partition("_")[2]: path for path in folder.rglob("hssl.safetensors")}
    names = ("Benchmark_hssl", "Benchmark_single_domain_061_Ball", "Benchmark_continued_061_Ball")
    assert weights.keys() == set(names)
    of_all, of_own, continued = (read_metadata(weights[name]) for name in names)
    seen = [{(i.dataset_name, i.case) for i in each.images} for each in (of_all, of_own, continued)]
    assert all(each and each.isdisjoint((DATASET, case) for case in split["test"]) for each in seen)
    assert seen[1] < seen[0] == seen[2] and file_sha256(weights[names[0]]) in continued.origin


SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def check_validation_dice(run: Callable[..., str], folder: Path, split: dict) -> None:
    """The script by which values are chosen scores neither labelled nor test cases."""
    run("python", SCRIPTS / "validation_dice.py", "bench", "--arms", "scratch", "hssl", "--out", "validation.json")
    (found,) = json.loads((folder / "validation.json").read_text())["runs"]
    known = {*split["test"], *split["order"]["0"][:2]}
    assert found["cases"] == [case for case in split["order"]["0"] if case not in known] and found["cases"]
    for arm in ("scratch", "hssl"):
        assert 0 <= found[arm] <= 100 and len(found[f"{arm}, each"]) == len(found["cases"])


def check_frozen_features(run: Callable[..., str], folder: Path, split: dict) -> None:
    """So does the script that compares the features of weights files."""
    weights = sorted((folder / "bench").rglob("hssl.safetensors"))
    options = ["-p", PLANS, "--labelled", 1, "--draws", 3, "--out", "features.json"]
    run("python", SCRIPTS / "frozen_features.py", "bench", *weights, *options)
    found = json.loads((folder / "features.json").read_text())["targets"][DATASET]
    assert found["cases"] and set(found["cases"]).isdisjoint(split["test"])
    assert len(found["dice"]) == 3 + len(found["over_fresh"]) == 3 + len(weights)
    assert all(0 < dice <= 100 for dice in found["dice"].values())  # a ball that shines can be found by anyone


def check_repeats(run: Callable[..., str], folder: Path, split: dict) -> None:
    """Other random numbers on the same cases: another Dice, records untouched; the same command trains nothing."""
    before = read_records(folder / "bench")
    options = ["-d", 61, "--arms", "hssl", "--budget", "2", "--repeats", 2, "--out", "again.json"]
    run("python", SCRIPTS / "repeats.py", "bench", *options)
    found = json.loads((folder / "again.json").read_text())
    first, second = (r["dice"] for r in found["runs"])
    assert len(first) == len(second) == len(split["test"]) and first != second
    assert found["spread"][0]["repeats"] == 2 and found["spread"][0]["std"] >= 0
    run("python", SCRIPTS / "repeats.py", "bench", *options)
    assert json.loads((folder / "again.json").read_text())["runs"] == found["runs"]
    assert read_records(folder / "bench") == before


def leaky_weights(environment: dict[str, str], run: Callable[..., str]) -> Path:
    """Weights pretrained on everything."""
    run("hssl", "corpus", "-d", *TASKS, "-o", 900, "-p", PLANS, "-np", 1)
    path = Path(environment["nnUNet_preprocessed"]) / "Dataset900_Corpus" / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    plans["hssl"]["pretraining"].update({**PRETRAINING, "num_epochs": 1})
    path.write_text(json.dumps(plans))
    run("hssl", "pretrain", "900", "-device", "cpu")
    return next(Path(environment["nnUNet_results"]).rglob("hssl.safetensors"))


def test_a_grid_survives_a_kill_and_tests_what_no_arm_has_seen(
    run: Callable[..., str], environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, bench = grid(environment, run, tmp_path), tmp_path / "bench"
    killed(environment, words, tmp_path)
    first = {r.arm: r for r in read_records(bench)}
    assert 0 < len(first) < len(ARMS)
    splits = (bench / "splits.json").read_text()

    run("hssl", "benchmark", "run", *words)
    assert (bench / "splits.json").read_text() == splits
    records = {r.arm: r for r in read_records(bench)}
    assert records.keys() == set(ARMS) and all(records[arm] == record for arm, record in first.items())
    assert "9 done" in run("hssl", "benchmark", "status", "bench")
    split = json.loads(splits)[DATASET]
    check_records(bench, split)
    check_weights(bench, split)
    check_validation_dice(run, tmp_path, split)
    check_frozen_features(run, tmp_path, split)
    check_repeats(run, tmp_path, split)
    user = Path(environment["nnUNet_preprocessed"])
    assert not list(user.rglob("splits_final.json")) and not list(user.glob("Dataset9*"))

    leaky = leaky_weights(environment, run)
    said = run("hssl", "benchmark", "run", *words, "-w", leaky)
    assert "external_hssl is refused" in said and all(f"{DATASET}:{case}" in said for case in split["test"])
    assert len(read_records(bench)) == len(ARMS)

    for key in (ENV_RAW, ENV_PREPROCESSED):
        monkeypatch.setenv(key, environment[key])
    plan, mine = Workspace(bench).plan(), next(bench.rglob("hssl.safetensors"))
    checked(plan, mine, DATASET, read_splits(bench)[DATASET])
    with pytest.raises(HSSLError, match=split["test"][0]):  # before each run, whoever made the weights
        checked(plan, leaky, DATASET, read_splits(bench)[DATASET])
