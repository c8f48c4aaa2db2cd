"""A run trains its own fold, on weights that have seen no test case; what was removed is made once more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from two_datasets import LARGE, SMALL, nnunet_folds, plan

from hssl_nnunet import launch
from hssl_nnunet.benchmark import leakage, run
from hssl_nnunet.benchmark.job import finetune_run, weights_of
from hssl_nnunet.benchmark.jobs import JobState, JobTable, shard
from hssl_nnunet.benchmark.records import Run
from hssl_nnunet.benchmark.run import allowed
from hssl_nnunet.benchmark.splits import read_splits
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.errors import HSSLError

pytestmark = pytest.mark.usefixtures("two_datasets")


def test_a_run_trains_its_own_fold_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, trained = Workspace(tmp_path / "bench"), []
    run.prepare(workspace, plan(budgets=["2", "5"], arms=["scratch"], seeds=2))
    monkeypatch.setattr(launch, "train", lambda training, **_: trained.append(training))
    asked = Run(dataset_name=LARGE, budget="5", arm="scratch", seed=1)
    split, path = read_splits(workspace.folder)[LARGE], workspace.preprocessed / LARGE / "splits_final.json"
    with pytest.raises(HSSLError, match="checkpoint_final"):  # nothing was trained in truth
        finetune_run(workspace, workspace.plan(), split, asked)
    assert [(one.dataset, one.configuration, one.fold) for one in trained] == [(LARGE, "3d_fullres", "3")]
    folds = nnunet_folds(workspace, LARGE)
    leaky = {"train": [*folds[3]["train"][1:], split.test[0]], "val": split.test}
    for tampered, said in ((folds[:3], "no such fold"), ([*folds[:3], leaky], "other cases")):
        path.write_text(json.dumps(tampered))
        with pytest.raises(HSSLError, match=f"(?s){path}.*fold 3.*5 labelled and 6 test cases.*{said}.*again"):
            finetune_run(workspace, workspace.plan(), split, asked)
    path.unlink()
    with pytest.raises(HSSLError, match=f"{path} does not exist"):
        finetune_run(workspace, workspace.plan(), split, asked)
    assert len(trained) == 1


def test_weights_that_have_seen_a_test_case_train_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, weights = Workspace(tmp_path / "bench"), tmp_path / "w.safetensors"
    weights.touch()
    monkeypatch.setattr(run, "audit", lambda *_: {})
    run.prepare(workspace, plan(arms=[f"external:{weights}"]))
    seen = SimpleNamespace(dataset_name=LARGE, case="", patient="p00", content_hash="")
    monkeypatch.setattr(leakage, "read_metadata", lambda path: SimpleNamespace(images=[seen]))
    monkeypatch.setattr(leakage, "measured", run.measured)
    monkeypatch.setattr(launch, "train", lambda *_, **__: pytest.fail("it trains"))
    split = read_splits(workspace.folder)[LARGE]
    split = replace(split, test=("p00", *split.test[1:]))
    folds = [{**fold, "val": list(split.test)} for fold in nnunet_folds(workspace, LARGE)]
    (workspace.preprocessed / LARGE / "splits_final.json").write_text(json.dumps(folds))
    asked = Run(dataset_name=LARGE, budget="12", arm="external_w", seed=0)
    with pytest.raises(HSSLError, match="p00"):
        finetune_run(workspace, workspace.plan(), split, asked)


def test_shards_that_saw_other_refusals_leave_no_run_to_nobody(tmp_path: Path) -> None:
    asked = plan(arms=["scratch", "hssl", "mae"], seeds=2, budgets=["2", "12"], datasets=[LARGE, SMALL])
    jobs, refused = run.jobs_of(tmp_path, asked), {("hssl", LARGE), ("mae", LARGE), ("mae", SMALL)}
    shares = [allowed(shard(jobs, part), refusals) for part, refusals in (("1/2", set()), ("2/2", refused))]
    left = {job.name for job in allowed(jobs, refused)}
    assert left <= {job.name for share in shares for job in share}
    assert "pretrain/hssl" in left and "pretrain/mae" not in left  # nobody else needs it


def test_a_run_whose_record_was_removed_is_repeated(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "bench")
    jobs, _ = run.prepare(workspace, plan(arms=["scratch"], seeds=2))
    table = JobTable(workspace.folder)
    for job in jobs:
        table.write(job.name, JobState(state="done"))
    kept = Run.of_job(jobs[0].name).record_file(workspace.folder)
    kept.parent.mkdir(parents=True)
    kept.touch()
    run.forget_lost(table, workspace, jobs)
    assert [table.state(job.name).state for job in jobs] == ["done", "pending"]


def test_a_run_that_ends_while_others_look_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path / "bench")
    (job,), _ = run.prepare(workspace, plan(arms=["scratch"]))
    table = JobTable(workspace.folder)

    class Record:
        def is_file(self) -> bool:
            """Another runner ends the job just after this look."""
            table.write(job.name, JobState(state="done"))
            return False

    monkeypatch.setattr(Run, "record_file", lambda *_: Record())
    run.forget_lost(table, workspace, [job])
    assert table.state(job.name).state == "done"


def test_weights_that_are_gone_are_made_anew_for_runs_without_a_record(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "bench")
    asked = plan(arms=["hssl", "encoder_only"])
    jobs, _ = run.prepare(workspace, asked)
    table = JobTable(workspace.folder)
    (pretraining,) = (job.name for job in jobs if not job.needs)
    told = table.folder(pretraining) / "pretraining.json"
    for job in jobs:
        table.write(job.name, JobState(state="done"))
    told.write_text(json.dumps({"weights": "w.safetensors"}))
    records = [Run.of_job(job.name).record_file(workspace.folder) for job in jobs if job.needs]
    for record_file in records:
        record_file.parent.mkdir(parents=True)
        record_file.touch()
    run.forget_lost(table, workspace, jobs)
    assert {table.state(job.name).state for job in jobs} == {"done"}  # nobody needs them
    records[1].unlink()
    (workspace.folder / "w.safetensors").touch()
    run.forget_lost(table, workspace, jobs)
    assert [table.state(job.name).state for job in jobs] == ["done", "done", "pending"]
    (workspace.folder / "w.safetensors").unlink()
    run.forget_lost(table, workspace, jobs)
    assert [table.state(job.name).state for job in jobs] == ["pending", "done", "pending"]
    with pytest.raises(HSSLError, match="needs the weights of job pretrain/hssl.*again"):
        weights_of(workspace, asked, "encoder_only", LARGE)


def test_a_pretraining_waits_for_the_one_that_it_goes_on_from(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "bench")
    jobs, _ = run.prepare(workspace, plan(arms=["continued", "hssl"], datasets=[LARGE, SMALL], budgets=["2"]))
    needs = {job.name: job.needs for job in jobs}
    first, *own = (name for name in needs if name.startswith("pretrain/"))
    assert (first, needs[first]) == ("pretrain/hssl", ())
    assert {name: needs[name] for name in own} == {f"pretrain/continued/{d}": (first,) for d in (LARGE, SMALL)}
    assert needs[f"finetune/{LARGE}/2/continued/seed_0"] == (own[0],) and list(needs)[:3] == [first, *own]
    (mine,) = (share for share in (shard(jobs, f"{i}/4") for i in range(1, 5)) if own[0] in {j.name for j in share})
    kept = {job.name for job in allowed(mine, {})}
    assert {own[0], first} < kept and f"finetune/{LARGE}/2/hssl/seed_0" not in kept


def test_weights_that_are_gone_are_made_anew_with_those_they_go_on_from(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "bench")
    jobs, _ = run.prepare(workspace, plan(arms=["hssl", "continued"]))
    table = JobTable(workspace.folder)
    first, own, _, waiting = names = [job.name for job in jobs]
    record_file = Run.of_job(names[2]).record_file(workspace.folder)
    record_file.parent.mkdir(parents=True)
    record_file.touch()
    (workspace.folder / "w").touch()

    def asked_again(there: set[str]) -> set[str]:
        for name in names:
            table.write(name, JobState(state="done"))
        for name in (first, own):
            told = {"weights": "w" if name in there else "gone"}
            (table.folder(name) / "pretraining.json").write_text(json.dumps(told))
        run.forget_lost(table, workspace, jobs)
        return {name for name in names if table.state(name).state == "pending"}

    assert [name.split("/")[0] for name in names] == ["pretrain", "pretrain", "finetune", "finetune"]
    assert asked_again({first, own}) == {waiting}
    assert asked_again({own}) == {waiting}  # nobody goes on from the first any more
    assert asked_again({first}) == {waiting, own}
    assert asked_again(set()) == {waiting, own, first}
