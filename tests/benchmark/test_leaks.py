"""No test patient in any pretraining, and no comparison of runs with different values."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_benchmark import typed_plan

from hssl_nnunet.benchmark.arms import Arm, known_arms
from hssl_nnunet.benchmark.job import pretraining_job
from hssl_nnunet.benchmark.leakage import overlap, refused_arms, with_earlier
from hssl_nnunet.benchmark.plan import BenchmarkPlan, patterns_of
from hssl_nnunet.benchmark.pretraining import excluded_cases, free_id
from hssl_nnunet.benchmark.run import allowed, jobs_of
from hssl_nnunet.benchmark.splits import DatasetSplit
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.launch import SCRATCH_TRAINER
from hssl_nnunet.paths import ENV_RAW

MR, PET, CINE = "Dataset052_MR", "Dataset053_PET", "Dataset054_Cine"


def split(test: list[str], rest: list[str], patients: dict[str, str]) -> DatasetSplit:
    return DatasetSplit(test=tuple(test), patients=patients, order={0: tuple(rest)})


@pytest.fixture
def plan(nnunet_folders: dict[str, Path]) -> BenchmarkPlan:
    cases = {MR: ["S1", "S2", "S3"], PET: ["S1", "S2", "S4"], CINE: ["A_1", "A_2", "B_1"]}
    for name, there in cases.items():
        folder = nnunet_folders[ENV_RAW] / name
        for sub, names in (("imagesTr", there[:-1]), ("imagesTs", there[-1:])):
            (folder / sub).mkdir(parents=True)
            for case in names:
                (folder / sub / f"{case}_0000.nii.gz").touch()
        content = {"channel_names": {"0": "MRI"}, "labels": {}, "numTraining": 2, "file_ending": ".nii.gz"}
        (folder / "dataset.json").write_text(json.dumps(content))
    return options()


def options(**changes: object) -> BenchmarkPlan:
    own = {"datasets": [PET], "domains": [MR, CINE], "budgets": ["5%"], "patient_regex": ["54=(.*)_"]}
    return typed_plan(**{**own, **changes})


def test_a_test_patient_is_left_out_of_domains_that_are_no_targets(plan: BenchmarkPlan) -> None:
    splits = {PET: split(["S1", "S4"], ["S2"], {"S1": "S1", "S2": "S2", "S4": "S4"})}
    assert excluded_cases(plan, splits, (MR, CINE)) == [f"{MR}:S1"]
    assert excluded_cases(plan, splits, (MR, PET)) == [f"{MR}:S1", f"{PET}:S1", f"{PET}:S4"]


def test_patients_of_several_cases_go_whole(plan: BenchmarkPlan) -> None:
    splits = {CINE: split(["A_1"], ["B_1"], {"A_1": "A", "B_1": "B"})}
    assert excluded_cases(plan, splits, (CINE,)) == [f"{CINE}:A_1", f"{CINE}:A_2"]


def test_the_test_patients_stay_out_of_a_tuning_too(plan: BenchmarkPlan) -> None:
    tuning = replace(split(["S2"], [], {"S1": "S1", "S2": "S2", "S4": "S4"}), untouched=("S1", "S4"))
    assert excluded_cases(plan, {PET: tuning}, (MR,)) == [f"{MR}:S1", f"{MR}:S2"]
    assert excluded_cases(plan, {PET: tuning}, (PET,)) == [f"{PET}:S1", f"{PET}:S2", f"{PET}:S4"]


def test_nothing_is_excluded_where_no_domain_shows_a_test_patient(plan: BenchmarkPlan) -> None:
    assert excluded_cases(plan, {PET: split(["S4"], ["S1"], {"S4": "S4", "S1": "S1"})}, (CINE,)) == []


def test_an_overlap_is_found_by_case_by_patient_and_by_content(plan: BenchmarkPlan) -> None:
    target = split(["S1", "S4"], ["S2"], {"S1": "p1", "S2": "p2", "S4": "p4"})
    hashes = {"S1": ["h1"], "S4": ["h4"]}

    def seen(dataset_name: str, case: str, patient: str, content_hash: str) -> list[str]:
        image = SimpleNamespace(dataset_name=dataset_name, case=case, patient=patient, content_hash=content_hash)
        return overlap(SimpleNamespace(images=[image]), PET, target, hashes, patterns_of(plan))

    assert seen(PET, "S1", "x", "x") == [f"{PET}:S1"]
    assert seen(MR, "S1", "x", "x") == [f"{PET}:S1"]  # without a regex a case is named after its patient
    assert seen(MR, "S3", "x", "x") == []
    assert seen(MR, "other", "p4", "x") == [f"{PET}:S4"]
    assert seen(MR, "other", "x", "h1") == [f"{PET}:S1"]
    assert seen(PET, "S2", "p2", "h2") == []
    target = replace(target, untouched=("S2",))  # where values are tuned, who tests otherwise
    assert seen(PET, "S2", "x", "x") == seen(MR, "other", "p2", "x") == [f"{PET}:S2"]


def test_a_patient_is_known_by_the_own_name_where_copies_share_another(plan: BenchmarkPlan) -> None:
    """Two test cases show one image, hence one patient; the second one's name is seen elsewhere."""
    target = split(["S1", "S4"], ["S2"], {"S1": "S1", "S4": "S1", "S2": "S2"})
    image = SimpleNamespace(dataset_name=MR, case="S4", patient="S4", content_hash="x")
    assert overlap(SimpleNamespace(images=[image]), PET, target, {}, patterns_of(plan)) == [f"{PET}:S4"]
    assert f"{PET}:S4" in excluded_cases(plan, {PET: target}, (PET,))


def test_imported_weights_are_refused_on_the_dataset_they_were_trained_on(plan: BenchmarkPlan) -> None:
    target = split(["S1", "S4"], ["S2"], {"S1": "p1", "S2": "p2", "S4": "p4"})
    imported = SimpleNamespace(images=None, domains=[SimpleNamespace(dataset_name=PET)])
    assert overlap(imported, PET, target, {}, patterns_of(plan)) == [f"{PET}:S1", f"{PET}:S4"]
    assert overlap(imported, MR, target, {}, patterns_of(plan)) == []


def test_patients_are_compared_by_the_benchmarks_names_too(plan: BenchmarkPlan) -> None:
    target = split(["A_1"], ["B_1"], {"A_1": "A", "B_1": "B"})

    def seen(case: str, patient: str) -> list[str]:  # weights made without a patient regex, or with another
        image = SimpleNamespace(dataset_name=CINE, case=case, patient=patient, content_hash="x")
        return overlap(SimpleNamespace(images=[image]), CINE, target, {}, patterns_of(plan))

    assert seen("A_2", "A_2") == [f"{CINE}:A_1"]
    assert seen("B_2", "B_2") == []
    assert seen("nameless", "A") == [f"{CINE}:A_1"]  # a case that the regex does not know


def test_an_arm_on_refused_weights_is_refused_and_an_audit_keeps_what_earlier_ones_found(
    plan: BenchmarkPlan, tmp_path: Path
) -> None:
    arms = {
        "external_a": Arm(description="a", weights_file="a"),
        "on_a": Arm(description="b", weights_of="external_a"),
        "after_a": Arm(description="c", pretrained_on="target", continues="external_a"),
        "on_after": Arm(description="d", weights_of="after_a"),
    }
    plan, kept = replace(plan, arms={**plan.arms, **arms}), {}
    assert refused_arms(plan, kept) == {}
    found = {"external_a": [f"{PET}:S1"], "external_b": []}
    for audited, pairs, expected in (
        ({"external_a": []}, [("external_a", PET)], {"external_a": []}),
        (found, [("external_a", PET), ("external_b", PET)], found),
        ({}, [("scratch", PET)], found),  # a run of other arms on the same dataset
        ({"external_a": [], "external_b": []}, [("external_a", MR), ("external_b", PET)], found),
    ):
        kept = with_earlier(audited, kept, pairs)
        assert kept == expected
    refused = refused_arms(plan, kept)
    assert refused == {(arm, PET): [f"{PET}:S1"] for arm in arms}
    names = {job.name for job in allowed(jobs_of(tmp_path, replace(plan, datasets=(PET, MR), arms=arms)), refused)}
    of_mr = {name for name in names if name.startswith(f"finetune/{MR}/")}
    assert len(of_mr) == len(arms)  # on a target that they have not seen all run
    assert names - of_mr == {f"pretrain/after_a/{MR}"}


@pytest.mark.parametrize(("typed", "kept"), [(["5", "10", "cases"], ("5", "10")), (["5%", "9"], ("5%", "9"))])
def test_budgets_may_be_followed_by_the_word_cases(
    plan: BenchmarkPlan, typed: list[str], kept: tuple[str, ...]
) -> None:
    assert options(budgets=typed).budgets == kept
    for wrong in (["cases", *typed[:1]], ["cases"]):
        with pytest.raises(HSSLError, match="'cases'"):
            options(budgets=wrong)


def test_a_later_run_may_add_but_not_change(plan: BenchmarkPlan, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "bench")
    assert plan.about["cpu"] and plan.about["cores"]
    workspace.check_plan(plan)
    workspace.write_plan(plan)
    workspace.check_plan(options(seeds=3, budgets=["5%", "20%"], arms=["scratch", "hssl", "mae"], device=None))
    workspace.write_plan(workspace.check_plan(options(arms=["mae"], budgets=["20%"], command="again")))
    kept = workspace.plan()
    assert kept.commands == ("hssl benchmark run", "again") and kept.command == "hssl benchmark run"
    assert (list(kept.arms), kept.budgets, kept.seeds) == (["scratch", "hssl", "mae"], ("5%", "20%"), (0,))
    assert plan.plan_values["pretraining"]["initial_lr"] > 0 and plan.plan_values["finetuning"]["num_epochs"] > 0
    described = {name: replace(arm, description="in other words") for name, arm in plan.arms.items()}
    workspace.check_plan(replace(plan, arms=described))
    (tmp_path / "values.json").write_text('{"finetuning": {"num_epochs": 70}}')
    for changes, named in (
        ({"values_file": tmp_path / "values.json"}, "plan_values.finetuning.num_epochs"),
        ({"domains": [MR]}, "domains"),
        ({"min_cases": 3}, "min_cases"),
        ({"tune": True}, "tune"),
        ({"plans_name": "nnUNetCPUPlans"}, "plans_name"),
    ):
        with pytest.raises(HSSLError, match=f"{named} was .*-o"):
            workspace.check_plan(options(**changes))


def test_two_weights_files_of_one_name_are_told_apart_by_the_user(plan: BenchmarkPlan, tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "hssl.safetensors").touch()
    with pytest.raises(HSSLError, match="rename"):
        options(arms=[f"external:{tmp_path / folder / 'hssl.safetensors'}" for folder in "ab"])


def test_arms_of_ones_own_stand_beside_the_known_ones(plan: BenchmarkPlan, tmp_path: Path) -> None:
    path = tmp_path / "values.json"

    def chosen(arms: list[str], own: dict[str, object]) -> BenchmarkPlan:
        path.write_text(json.dumps({"arms": own}))
        return options(arms=arms, values_file=path)

    on = {"description": "x", "pretrained_on": "target", "continues": "hssl"}
    on_all = {"continues": "single_domain", "pretrained_on": "all"}
    low = {"description": "low rate", "weights_of": "hssl", "finetuning": {"initial_lr": 1e-4}}
    own = chosen(["hssl", "low"], {"low": low}).arms["low"]
    assert own.seeded and own.finetuning == {"initial_lr": 1e-4}
    assert pretraining_job(chosen(["hssl", "low"], {"low": low}), "low", PET) == "pretrain/hssl"
    for arms, added, said in (
        (["low"], {"low": low}, "name hssl in"),
        (["hssl"], {"hssl": low}, "hssl ship with hssl"),
        (["high"], {"low": low}, "low"),
        (["low"], {"low": {"descriptio": "x"}}, "values.json"),
        (["hssl", "low"], {"low": {**low, "finetuning": {"initial_rate": 1}}}, "arm low.*initial_rate"),
        (["hssl", "low"], {"low": {**low, "trainer": "nnUNetTrainerX"}}, "nnUNetTrainerHSSLScratch"),
        (["scratch", "low"], {"low": {**low, "weights_of": "scratch"}}, "nothing makes"),
        (["low"], {"low": {"description": "x"}}, "nothing makes"),
        (["a", "b"], {"a": {**low, "weights_of": "b"}, "b": {**low, "weights_of": "a"}}, "nothing makes"),
        (["low"], {"low": {**low, "weights_file": "w"}}, r"`weights_file` /.*/w and `weights_of` hssl: leave one"),
        (["low"], {"low": {**low, "pretrained_on": "all"}}, "`weights_of` hssl and `pretrained_on` all: leave one"),
        (["hssl", "low"], {"low": {**low, "trainer": SCRATCH_TRAINER}}, f"{SCRATCH_TRAINER} starts from no weights"),
        (["own"], {"own": {"description": "x", "weights_file": "w"}}, "own: /.*/w does not exist.*hssl import"),
        (["a.b"], {"a.b": {"description": "x", "pretrained_on": "all"}}, "names a dataset"),
        (["a/b"], {"a/b": {"description": "x", "pretrained_on": "all"}}, "becomes a folder"),
        (["on"], {"on": on}, "on continues hssl: name hssl in"),
        (["hssl", "on"], {"on": {**on, "pretrained_on": "none"}}, "without a pretraining: set `pretrained_on`"),
        (["hssl", "on"], {"on": {**low, "continues": "hssl"}}, "without a pretraining: set `pretrained_on`"),
        (["scratch", "on"], {"on": {**on, "continues": "scratch"}}, "scratch, which has no weights of its own"),
        (["on"], {"on": {**on, "continues": "on"}}, "which continues on itself"),
        (["hssl", "continued", "on"], {"on": {**on, "continues": "continued"}}, "which continues hssl itself"),
        (["single_domain", "on"], {"on": {**on, **on_all}}, "single_domain, whose weights are made for each target"),
    ):
        with pytest.raises(HSSLError, match=f"(?s){said}"):
            chosen(arms, added)


def test_a_weights_file_is_told_from_where_the_command_is_typed(
    plan: BenchmarkPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.safetensors").touch()
    arm = {"description": "x", "weights_file": "w.safetensors"}
    (tmp_path / "values.json").write_text(json.dumps({"arms": {"own": arm}}))
    monkeypatch.chdir(tmp_path)
    made = options(arms=["own"], values_file=Path("values.json"))
    assert made.arms["own"].weights_file == str(tmp_path / "w.safetensors")
    workspace = Workspace(tmp_path / "bench")
    workspace.write_plan(replace(made, arms={"own": replace(made.arms["own"], weights_file="w.safetensors")}))
    workspace.check_plan(made)  # as an older version wrote it


def test_defaults_that_changed_between_versions_are_noticed(plan: BenchmarkPlan, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "bench")
    workspace.write_plan(plan)
    values = {**plan.plan_values, "pretraining": {**plan.plan_values["pretraining"], "initial_lr": 0.5}}
    with pytest.raises(HSSLError, match=r"values: plan_values\.pretraining\.initial_lr was [0-9.e-]+, is 0\.5\. Its"):
        workspace.check_plan(replace(plan, plan_values=values))
    workspace.write_plan(replace(plan, plan_values={}))  # as an older version wrote it
    workspace.check_plan(plan)


def test_a_benchmark_older_than_a_value_goes_on_while_the_value_changes_nothing(
    plan: BenchmarkPlan, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "bench")
    loss = dict(plan.plan_values["pretraining"]["loss"])
    off = {**plan.plan_values["pretraining"], "loss": {**loss, "voxel": 0.0}}
    asked = {"loss": {"voxel": 0.0}}
    plan = replace(plan, pretraining=asked, plan_values={**plan.plan_values, "pretraining": off})
    older = {**off, "loss": {name: value for name, value in loss.items() if not name.startswith("voxel")}}
    mae = known_arms()["mae"]
    plan = replace(plan, arms={**plan.arms, "mae": mae})
    terms = {name: value for name, value in mae.pretraining["loss"].items() if name != "voxel"}
    arms = {**plan.arms, "mae": replace(mae, pretraining={"loss": terms})}
    workspace.write_plan(replace(plan, arms=arms, plan_values={**plan.plan_values, "pretraining": older}))
    workspace.check_plan(plan)
    on = {**off, "loss": {**loss, "voxel": 0.5}}
    with pytest.raises(HSSLError, match=r"loss\.voxel was 0\.0, is 0\.5"):
        workspace.check_plan(replace(plan, plan_values={**plan.plan_values, "pretraining": on}))


def test_corpora_that_are_built_side_by_side_get_ids_of_their_own(
    nnunet_folders: dict[str, Path], tmp_path: Path
) -> None:
    (nnunet_folders[ENV_RAW] / "Dataset899_Mine").mkdir()
    workspace = Workspace(tmp_path)
    (workspace.preprocessed / "Dataset898_Benchmark_mae").mkdir(parents=True)
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(free_id, [workspace] * 40))
    assert sorted(ids, reverse=True) == [900, *range(897, 858, -1)]
