"""What a run fixes before its first job: written once all is checked, and open to datasets that come later."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_runs import record
from two_datasets import LARGE, PATIENTS, SMALL, nnunet_folds, plan

from hssl_nnunet.benchmark import leakage, run
from hssl_nnunet.benchmark.plan import regexes_of
from hssl_nnunet.benchmark.records import write_record
from hssl_nnunet.benchmark.splits import DatasetSplit, read_splits
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.paths import ENV_PREPROCESSED
from hssl_nnunet.transfer.weights_file import file_sha256

pytestmark = pytest.mark.usefixtures("two_datasets")


@pytest.mark.skipif(sys.platform == "win32", reason="no record locks")
def test_commands_that_start_together_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, commands = Workspace(tmp_path / "bench"), {name: plan(budgets=["2", name]) for name in ("10", "5")}
    other = multiprocessing.get_context("fork").Process(target=run.prepare, args=(workspace, commands["5"]))
    here = os.getpid()

    def audit(*_: object) -> dict[str, list[str]]:
        if os.getpid() == here and other.pid is None:  # between reading the folds and writing them
            other.start()
            other.join(2)
            assert other.is_alive()
        return {}

    monkeypatch.setattr(run, "audit", audit)
    run.prepare(workspace, commands["10"])
    other.join(60)
    assert other.exitcode == 0
    assert json.loads((workspace.folder / "folds.json").read_text()) == [[0, "2"], [0, "10"], [0, "5"]]
    assert [len(fold["train"]) for fold in nnunet_folds(workspace, LARGE)] == [2, 10, 5]


def test_a_budget_that_is_refused_leaves_the_folder_open_to_others(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "bench")
    with pytest.raises(HSSLError, match="Budget 200: 200 labelled cases asked for, 14"):
        run.prepare(workspace, plan(budgets=["200"], test_fraction=0.3))
    run.prepare(workspace, plan(budgets=["5%"], test_fraction=0.5))
    (fold,) = nnunet_folds(workspace, LARGE)
    assert (len(fold["train"]), len(fold["val"])) == (1, 10)  # and the share that tests is the second command's


@pytest.mark.parametrize(
    ("device", "part", "said"), [("foo", None, "Unknown device 'foo'"), ("cpu", "9/8", "--shard '9/8': expected i/n")]
)
def test_a_device_or_a_share_that_is_refused_leaves_nothing(
    tmp_path: Path, device: str, part: str | None, said: str
) -> None:
    with pytest.raises(HSSLError, match=said):
        run.run_benchmark(tmp_path / "bench", plan(device=device), 1, part)
    assert not (tmp_path / "bench").exists()


def test_plans_are_named_by_preset_or_name() -> None:
    typed = {"domains": None, "weights": None, "patient_regex": None, "values": None, "plans_name": "nnUNetPlans"}
    others = {"configuration": "3d_fullres", "budgets": ["12"], "min_cases": 1, "seeds": 1, "test_fraction": 0.3}
    others |= {"tune": False, "nsd_tolerance_mm": 1.0, "device": "cpu"}
    made = run.plan_as_typed(datasets=["1"], arms=["scratch"], preset="cpu", **typed, **others)
    assert (made.domains, made.plans_name) == ((), "nnUNetCPUPlans")
    made = run.plan_as_typed(datasets=["1"], arms=["scratch"], preset=None, **{**typed, "domains": ["2"]}, **others)
    assert (made.domains, made.plans_name) == ((SMALL,), "nnUNetPlans")


def test_a_dataset_that_joins_later_has_folds_of_its_own_and_none_that_ask_too_much(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "bench")
    run.prepare(workspace, plan(seeds=2))
    run.prepare(workspace, plan(datasets=[SMALL], budgets=["2"]))
    folds = json.loads((workspace.folder / "folds.json").read_text())
    assert folds == [[0, "12"], [1, "12"], [0, "2"]]
    assert [len(fold["train"]) for fold in nnunet_folds(workspace, SMALL)] == [0, 0, 2]
    assert [len(fold["train"]) for fold in nnunet_folds(workspace, LARGE)] == [12, 12]
    with pytest.raises(HSSLError, match="Budget 12"):
        run.prepare(workspace, plan(datasets=[SMALL]))


def test_what_was_asked_for_is_each_commands_own_grid(tmp_path: Path) -> None:
    workspace, path = Workspace(tmp_path / "bench"), tmp_path / "bench" / "benchmark.json"
    run.prepare(workspace, plan(seeds=2))
    run.prepare(workspace, plan(datasets=[SMALL], budgets=["2"], arms=["scratch"]))
    asked = {f"{LARGE}/12/{arm}/seed_{seed}" for arm in ("scratch", "hssl") for seed in (0, 1)}
    asked.add(f"{SMALL}/2/scratch/seed_0")
    assert {each.name for each in workspace.plan().runs} == asked and len(workspace.plan().runs) == 5
    jobs = {job.name.removeprefix("finetune/") for job in run.jobs_of(path.parent, workspace.plan())}
    assert jobs == {*asked, "pretrain/hssl"}
    old = json.loads(path.read_text())  # as an older version wrote it: the whole product is all that it says
    del old["grids"]
    path.write_text(json.dumps(old))
    assert len(workspace.plan().runs) == 2 * 2 * 2 * 2
    jobs, _ = run.prepare(workspace, plan(datasets=[SMALL], budgets=["3"], arms=["scratch"]))
    assert len(workspace.plan().runs) == 17 and len(jobs) == 1


def test_weights_that_have_seen_a_dataset_that_joins_later_are_refused_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = SimpleNamespace(dataset_name=SMALL, case="p00", patient="p00", content_hash="")
    monkeypatch.setattr(leakage, "read_metadata", lambda path: SimpleNamespace(images=[seen]))
    tests = {LARGE: "p01", SMALL: "p00"}
    splits = {name: DatasetSplit(test=(case,), patients={case: case}, order={}) for name, case in tests.items()}
    weights = {("hssl", name): tmp_path / "hssl.safetensors" for name in PATIENTS}
    assert leakage.audit(weights, splits, {LARGE: {}, SMALL: {}}, {}) == {"hssl": [f"{SMALL}:p00"]}


def test_weights_of_a_pretraining_that_has_ended_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, asked = Workspace(tmp_path / "bench"), []
    monkeypatch.setattr(run, "audit", lambda weights, *_: asked.append(weights) or {})
    run.prepare(workspace, plan())
    told = workspace.folder / "jobs" / "pretrain" / "hssl" / "pretraining.json"
    told.parent.mkdir(parents=True)
    told.write_text(json.dumps({"weights": "w.safetensors"}))
    run.prepare(workspace, plan())  # they are gone
    (workspace.folder / "w.safetensors").touch()
    run.prepare(workspace, plan())
    assert asked == [{}, {}, {("hssl", LARGE): workspace.folder / "w.safetensors"}]


def test_runs_of_one_arm_start_from_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, weights = Workspace(tmp_path / "bench"), tmp_path / "w.safetensors"
    weights.write_bytes(b"first")
    monkeypatch.setattr(run, "audit", lambda *_: {})
    mine = plan(arms=[f"external:{weights}"])
    run.prepare(workspace, mine)
    (arm,) = mine.arms
    ended = replace(record(arm, 0, [0.5], dataset_name=LARGE), weights_sha256=file_sha256(weights))
    write_record(workspace.folder, ended)
    damaged = write_record(workspace.folder, record("other", 0, [0.5], dataset_name=LARGE))
    damaged.write_text("of another arm: it need not be read")
    run.prepare(workspace, plan(arms=[f"external:{weights}"], seeds=2))
    weights.write_bytes(b"second")
    with pytest.raises(HSSLError, match="Arm external_w on Dataset001_Large .*another name"):
        run.prepare(workspace, plan(arms=[f"external:{weights}"], seeds=3))
    assert workspace.plan().seeds == (0, 1)
    run.prepare(workspace, plan(datasets=[SMALL], budgets=["2"], arms=[f"external:{weights}"]))  # has no run yet


def test_a_run_keeps_what_was_found_of_arms_it_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, seen = Workspace(tmp_path / "bench"), {"hssl": [f"{LARGE}:p00"]}
    for arms, found, kept in (
        (["hssl"], seen, seen),
        (["scratch"], {}, seen),
        (["hssl"], {}, {"hssl": []}),  # its weights are gone, and will be made anew
    ):
        monkeypatch.setattr(run, "audit", lambda *_, found=found: found)
        _, refused = run.prepare(workspace, plan(arms=arms))
        assert json.loads((workspace.folder / "leakage.json").read_text()) == kept
        assert refused == ({("hssl", LARGE): seen["hssl"]} if found else {})


def test_domains_are_the_first_runs_in_any_order_and_left_out_too(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "bench")
    run.prepare(workspace, plan(domains=None))
    assert workspace.plan().domains == (LARGE,)
    workspace = Workspace(tmp_path / "both")
    run.prepare(workspace, plan(domains=[SMALL, LARGE]))
    for domains in ([LARGE, SMALL], None):
        run.prepare(workspace, plan(domains=domains, budgets=["2"]))
        assert workspace.plan().domains == (SMALL, LARGE)
    with pytest.raises(HSSLError, match=rf"domains was \['{LARGE}', '{SMALL}'\], is \['{SMALL}'\]"):
        run.prepare(workspace, plan(domains=[SMALL]))


def test_patient_regexes_of_other_runs_datasets_may_be_typed_or_left_out(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "bench")
    asked = {"domains": [LARGE], "budgets": ["2"]}
    run.prepare(workspace, plan(**asked))
    run.prepare(workspace, plan(**asked, datasets=[SMALL], patient_regex=["2=p(.*)"]))
    assert set(read_splits(workspace.folder)[SMALL].patients.values()) == {f"{i:02}" for i in range(6)}
    for typed in (["2=p(.*)"], [f"{SMALL}=p(.*)"], []):
        run.prepare(workspace, plan(**asked, patient_regex=typed))
        assert workspace.plan().patient_regex == ("2=p(.*)",)
        assert regexes_of(workspace.plan(), [LARGE]) == []
    for typed, said in (
        (["2=(.*)"], rf"patient_regex of {SMALL} was p\(\.\*\), is \(\.\*\)"),
        (["1=(.*)"], f"patient_regex of {LARGE} was None"),
        (["3=(.*)"], f"expected DATASET=REGEX .*{LARGE}, {SMALL}"),
    ):
        with pytest.raises(HSSLError, match=said):
            run.prepare(workspace, plan(**asked, patient_regex=typed))


def test_a_dataset_that_is_named_twice_counts_once() -> None:
    made = plan(domains=[LARGE, SMALL, SMALL], datasets=["1", LARGE])
    assert (made.domains, made.datasets) == ((LARGE, SMALL), (LARGE,))


def test_data_that_has_moved_are_linked_anew(tmp_path: Path) -> None:
    workspace, source = Workspace(tmp_path / "bench"), tmp_path / "there" / LARGE
    source.mkdir(parents=True)
    (source / "dataset.json").write_text("1")
    workspace.link(source)
    shutil.move(tmp_path / "there", tmp_path / "elsewhere")
    linked = workspace.link(tmp_path / "elsewhere" / LARGE)
    assert (linked / "dataset.json").read_text() == "1"


@pytest.mark.parametrize("content", ["[3]", "null"])
@pytest.mark.parametrize("name", ["folds", "cases", "splits", "data", "leakage", "jobs/pretrain/hssl/pretraining"])
def test_a_file_of_the_benchmark_that_is_none_is_named(tmp_path: Path, name: str, content: str) -> None:
    workspace = Workspace(tmp_path / "bench")
    run.prepare(workspace, plan())
    path = workspace.folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with pytest.raises(HSSLError, match=f"^{path} is not a valid "):
        run.prepare(workspace, plan())


@pytest.mark.parametrize("taken", ["bench", f"bench/{ENV_PREPROCESSED}"])
def test_an_output_that_cannot_be_written_is_told_of(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).touch()
    with pytest.raises(HSSLError, match=f"Cannot write {tmp_path / taken}/.*: Not a directory"):
        run.prepare(Workspace(tmp_path / "bench"), plan())


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_is_read_only_is_told_of(tmp_path: Path) -> None:
    tmp_path.joinpath("bench").mkdir(mode=0o500)
    with pytest.raises(HSSLError, match="Cannot write .*: Permission denied"):
        run.prepare(Workspace(tmp_path / "bench"), plan())


def test_runners_link_the_same_data_at_the_same_time(tmp_path: Path) -> None:
    source = tmp_path / LARGE
    source.mkdir()
    for index in range(300):
        (source / f"{index}.json").touch()
    workspace = Workspace(tmp_path / "bench")
    with ThreadPoolExecutor(8) as pool:
        linked = set(pool.map(workspace.link, [source] * 8))
    assert len(list(linked.pop().iterdir())) == 300


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "Values"),
        ("null", "Values"),
        ('{"pretraining": null}', "pretraining"),
        ('{"finetuning": 3}', "finetuning"),
        ('{"finetuning": {"num_epochs": 4}}', "`warmup_epochs` 50 of `num_epochs` 4"),
        ('{"pretraining": {"preset": "cpu"}}', "preset"),
        ('{"arms": [], "weights": {}}', "weights"),
    ],
)
def test_a_wrong_file_of_values_is_told_of(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "values.json"
    path.write_text(content)
    with pytest.raises(HSSLError, match=f"(?s){path}.*{told}"):
        plan(values_file=path)
