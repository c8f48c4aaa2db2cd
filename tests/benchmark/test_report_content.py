"""What a benchmark's page takes from its folder, what it says of missing parts, which errors name a remedy."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_benchmark import (
    ARMS,
    DATASETS,
    EVIL_ARM,
    EVIL_DATASET,
    GAPS,
    SECTIONS,
    Page,
    heading,
    plain_slice,
    run,
    written_plan,
)

from hssl_nnunet.benchmark.arms import Arm
from hssl_nnunet.benchmark.jobs import JobState, JobTable
from hssl_nnunet.benchmark.plan import Grid
from hssl_nnunet.benchmark.records import write_record
from hssl_nnunet.benchmark.report.audit import audits
from hssl_nnunet.benchmark.report.cases import draw_slice
from hssl_nnunet.benchmark.report.commands import settings
from hssl_nnunet.benchmark.report.content import not_run, read_content
from hssl_nnunet.benchmark.report.costs import learned, pretrainings
from hssl_nnunet.benchmark.report.gallery import embeddings
from hssl_nnunet.benchmark.report.page import write_report
from hssl_nnunet.benchmark.report.tables import environment
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import write_json
from hssl_nnunet.networks.projection import Entry
from hssl_nnunet.transfer.report import TransferReport


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """One run of two arms each, without curves, and the plan alone beside the records."""
    written_plan(tmp_path, datasets=DATASETS[:1], budgets=("5%",))
    for arm in ("vanilla", "hssl"):
        write_record(tmp_path, run(DATASETS[0], "5%", arm, 0, epochs=()))
    return tmp_path


def test_cost_transfer_audit_environment_and_commands(page: Page) -> None:
    cost = page.grouped("Time and memory of every arm")
    assert cost[DATASETS[0], "hssl"] == ["6", "400", "1.8 min", "275 ms", "3.5 GiB"]
    assert cost[EVIL_DATASET, "hssl"] == ["5", "400", "1.8 min", "270 ms", "3.5 GiB"]
    learnt = dict(zip(*page.tables["What pretraining has learnt"], strict=True))
    assert (learnt["arm"], learnt["image"], learnt["reconstruction"]) == ("hssl", "1.53", "–")
    assert (learnt["domain told"], learnt["by intensity and size alone"], learnt["effective rank"]) == (
        "1",
        "0.917",
        "7.2",
    )
    assert page.tables["Pretraining"][1] == ["hssl", "–", "–", "2.0 h", "hssl.safetensors", "abc123"]
    assert page.grouped("Tensors transferred")[DATASETS[0], "hssl"] == ["41", "22", "3"]
    audit = page.tables["Leakage audit"]
    nothing = "nothing to leak: it starts from no weights"
    assert [row[1:] for row in audit[1:] if row[0] == "hssl"] == [
        [EVIL_DATASET, "refused, its weights have seen: <i>seen"],
        *([name, nothing] for name in DATASETS),  # of the runs that there are all the same
    ]
    others = [row for row in audit[1:] if row[0] != "hssl"]
    assert others == [[arm, "every target", nothing] for arm in ARMS if arm != "hssl"]
    assert f"the pretraining of hssl has seen test cases of {EVIL_DATASET}" in page.sections["answer"]
    assert f"seen test cases of {DATASETS[0]}" not in page.sections["answer"]
    rows = [["versions: torch", "2.<b>6"], ["cpu", "two cores"], ["flags", "bf16, channels_last"]]
    assert page.tables["Environment"][:4] == [*rows, ["configuration", "3d_fullres"]]
    assert "hssl benchmark run -d 4 <one>\nhssl benchmark run -d 4 9 <all>" in page.sections["commands"]


def test_what_was_not_run_is_listed_exactly(folder: Path, page: Page) -> None:
    listed = {
        (r.dataset_name, r.budget, r.arm, seed) for r in not_run(read_content(folder)) for seed in r.seeds
    }  # fmt: skip
    assert listed == GAPS
    assert page.tables["Runs that were not run"][1:] == [
        [EVIL_DATASET, "20%", "scratch", "0", "failed: killed"],
        [EVIL_DATASET, "20%", "scratch", "1", "pending"],
        [EVIL_DATASET, "20%", "hssl", "2", "refused: its pretraining has seen test cases"],
    ]
    assert "3 more asked for and not run" in page.sections[""]


def test_budgets_of_as_many_cases_are_in_order_of_size(tmp_path: Path) -> None:
    written_plan(tmp_path, datasets=DATASETS[:1], budgets=("10%", "5%", "20%"))
    for budget in ("10%", "5%", "20%"):  # so small a dataset that `--min_cases` decides two of them
        cases = ("a", "b", "c", "d")[: 4 if budget == "20%" else 3]
        write_record(tmp_path, replace(run(DATASETS[0], "5%", "hssl", 0), budget=budget, training_cases=cases))
    assert read_content(tmp_path).budgets() == ["5%", "10%", "20%"]


def test_what_no_command_asked_for_is_not_said_to_be_missing(tmp_path: Path) -> None:
    first = Grid(datasets=DATASETS[:1], budgets=("5%",), arms=("scratch", "hssl"), seeds=(0, 1))
    all_labels = Grid(datasets=DATASETS[:1], budgets=("100%",), arms=("scratch",), seeds=(0,))
    written_plan(tmp_path, grids=(first, all_labels))
    write_record(tmp_path, run(DATASETS[0], "5%", "hssl", 0))
    listed = [(r.budget, r.arm, r.seeds) for r in not_run(read_content(tmp_path))]
    assert listed == [("5%", "scratch", (0, 1)), ("5%", "hssl", (1,)), ("100%", "scratch", (0,))]


def test_parts_that_are_missing_are_said_to_be(bare: Path, tmp_path: Path) -> None:
    output = write_report(bare, tmp_path / "elsewhere" / "page.html")
    text = output.read_text(encoding="utf-8")
    page = Page(text)
    assert [a["id"] for tag, a in page.tags if tag == "section"] == SECTIONS
    for section in ("embedding", "transfer"):
        assert "Not available" in page.sections[section]
    assert "1 seed, too few to establish one" in page.sections["answer"]
    assert "has not been compared with scratch" in page.sections["answer"]
    assert "No run has recorded its Dice" in page.sections["curves"]
    assert page.sections["cases"].count("cases.json does not name this case") == 3
    assert "±" not in page.grouped("Results of every arm")[heading(DATASETS[0], "5%"), "hssl"][0]
    assert write_report(bare).read_text(encoding="utf-8") == text  # the same page, byte for byte


def test_a_benchmark_without_the_method_or_a_baseline_has_a_page(tmp_path: Path) -> None:
    written_plan(tmp_path)
    write_record(tmp_path, run(DATASETS[0], "20%", EVIL_ARM, 1))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "there is no answer" in page.sections["answer"]
    assert "No dataset has hssl and a baseline" in page.sections["patients"]


def test_what_the_runner_leaves_is_found(tmp_path: Path) -> None:
    target, sha256 = DATASETS[0], "ab" * 32
    arms = {
        "vanilla": Arm(description="stock"),
        "hssl": Arm(description="the whole loss", pretrained_on="all"),
        "single_domain": Arm(description="its own images", pretrained_on="target"),
    }
    plan = written_plan(
        tmp_path,
        datasets=(target,),
        domains=(target, "Dataset053_SarcomaPET"),
        budgets=("5%",),
        arms=arms,
        seeds=(0,),
        pretraining={"num_epochs": 7, "loss": {"image": 0.5}},
    )
    (tmp_path / "leakage.json").write_text(json.dumps({"single_domain": [f"{target}:case_1", f"{target}:case_2"]}))
    for name in ("pretrain/hssl", f"pretrain/single_domain/{target}"):
        JobTable(tmp_path).write(name, JobState(state="done", seconds=7200))
    told = {
        "seconds": 5400.0,
        "weights": "hssl.safetensors",
        "sha256": sha256,
    }  # its epochs, however often it was stopped
    (JobTable(tmp_path).folder("pretrain/hssl") / "pretraining.json").write_text(json.dumps(told))
    JobTable(tmp_path).write("pretrain/mae", JobState(state="failed"))
    curves = {"val_image": [2.5, 1.53068], "domain_accuracy": [float("nan"), 0.75], "group_floor": [float("nan")]}
    (tmp_path / "hssl.json").write_text(json.dumps({"curves": {**curves, "lrs": [0.1]}}))
    write_record(tmp_path, run(target, "5%", "hssl", 0, weights_sha256=sha256))
    statuses: tuple[Any, ...] = ("exact", "exact", "adapted", "fresh", "exact")
    entries = tuple(
        Entry(name=f"{i}", role=f"{('encoder', 'decoder')[i % 2]}.{i}", shape=(2, 3), status=status)
        for i, status in enumerate(statuses)
    )
    fold = Workspace(tmp_path).training(plan, target, "hssl", 0) / "fold_0"
    other = tmp_path / "nnUNet_results" / "Dataset900_Benchmark_other" / "T__nnUNetPlans__3d_fullres" / "fold_all"
    fold.mkdir(parents=True)
    other.mkdir(parents=True)  # of an arm that the page does not have
    report = TransferReport(dataset=target, configuration="3d_fullres", entries=entries)
    (fold / "transfer.json").write_text(json.dumps(report.to_json()))
    for folder in (tmp_path, other):
        (folder / "embeddings.png").write_bytes(draw_slice(plain_slice(), prediction=1))

    content = read_content(tmp_path)
    assert content.plan == plan
    assert pretrainings(content) == [
        ("hssl", "–", "–", "90.0 min", "hssl.safetensors", sha256),
        (f"single_domain, {target}", "–", "–", "2.0 h", "–", "–"),
    ]
    assert content.pretraining["hssl"].learned == {"val_image": 1.5307, "domain_accuracy": 0.75}
    assert learned(content) == [("hssl", "1.53", "–", "–", "–", "–", "0.75", "–", "–", "–", "–", "–")]
    assert content.transfer == {target: {"hssl": {"exact": 3, "adapted": 1, "fresh": 1}}}
    assert [p.title for p in embeddings(content)] == ["hssl"]
    looked_at = {a.arm: (a.dataset, a.refused, a.told) for a in audits(content)}
    assert looked_at["vanilla"] == ("every target", False, "nothing to leak: it starts from no weights")
    assert looked_at["hssl"][:2] == ("every target", False) and "by construction" in looked_at["hssl"][2]
    assert looked_at["single_domain"] == (target, True, "case_1, case_2")
    assert {(r.arm, r.why.partition(":")[0]) for r in not_run(content)} == {
        ("vanilla", "pending"),
        ("single_domain", "refused"),
    }
    told = dict(environment({**plan.about, **settings(plan)}))
    assert told["pretraining: num_epochs"] == "7" and told["pretraining: loss: image"] == "0.5"
    assert told["domains"] == f"{target}, Dataset053_SarcomaPET" and "device" not in told
    assert told["versions: torch"] == "2.<b>6"


def test_a_tuning_says_that_it_is_no_evidence(bare: Path) -> None:
    for tune in (False, True):
        written_plan(bare, tune=tune)
        page = write_report(bare).read_text(encoding="utf-8")
        assert ("everything here was scored on validation cases" in page) == tune


def test_an_arm_whose_name_begins_alike_has_a_transfer_of_its_own(bare: Path) -> None:
    plan = written_plan(bare, arms={name: Arm(description="an arm") for name in ("hssl", "hssl_small")})
    totals = {"encoder": {"exact": [2, 9], "adapted": [1, 9], "fresh": [0, 0]}}
    path = Workspace(bare).training(plan, DATASETS[0], "hssl_small", 0) / "fold_0" / "transfer.json"
    write_json(path, {"totals": totals})
    assert read_content(bare).transfer == {DATASETS[0]: {"hssl_small": {"exact": 2, "adapted": 1, "fresh": 0}}}


def test_without_vanilla_the_page_compares_with_scratch(tmp_path: Path) -> None:
    written_plan(tmp_path)
    for arm in ("scratch", "hssl"):
        write_record(tmp_path, run(DATASETS[0], "5%", arm, 0))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Difference to scratch on the same patients and seeds" in page and "Dice points over scratch" in page
    assert "Difference to vanilla" not in page and "Dice points over vanilla" not in page
    assert "Epochs to reach the final Dice of scratch" in page and "final Dice of vanilla" not in page


def test_memory_that_the_system_does_not_tell_is_a_dash(tmp_path: Path) -> None:
    written_plan(tmp_path)
    for dataset, known in zip(DATASETS, ({}, {"peak_gib": None}), strict=True):
        write_record(tmp_path, run(dataset, "5%", "hssl", 0, **known))
    write_report(tmp_path)
    cost = Page((tmp_path / "report.html").read_text(encoding="utf-8")).grouped("Time and memory of every arm")
    assert [cost[dataset, "hssl"][-1] for dataset in DATASETS] == ["1.5 GiB", "\N{EN DASH}"]


@pytest.mark.parametrize("name", ["benchmark.html", "splits.html", "benchmark", "test_cases.txt", "report.json"])
def test_a_page_replaces_no_file_of_the_benchmark(bare: Path, name: str) -> None:
    files = {bare / file: f'["{file}"]' for file in ("benchmark.json", "splits.json", "test_cases.txt")}
    for path, text in files.items():
        path.write_text(text)
    with pytest.raises(HSSLError, match=f"-o {bare / name}: .*Name .*.html file"):
        write_report(bare, bare / name)
    assert {path: path.read_text() for path in files} == files and not (bare / name).with_suffix(".html").exists()


def test_an_empty_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(HSSLError, match="hssl benchmark run -o"):
        write_report(tmp_path)


def test_a_wrong_file_is_named(bare: Path) -> None:
    path = bare / "benchmark.json"
    plan = json.loads(path.read_text())
    for wrong, key in (
        ({**plan, "seeds": ["one"]}, "seeds.0"),
        ({**plan, "pretraining": [1]}, "pretraining"),
        ([], ""),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(HSSLError, match=rf"benchmark.json is not a valid BenchmarkPlan:\n  {key}"):
            write_report(bare)
    path.unlink()
    with pytest.raises(HSSLError, match=f"{path} does not exist. Run `hssl benchmark run"):
        write_report(bare)


@pytest.mark.parametrize("content", ["[3]", "null", '{"totals": 3, "curves": 3}'])
def test_a_wrong_file_of_a_job_is_named(bare: Path, content: str) -> None:
    plan, table = Workspace(bare).plan(), JobTable(bare)
    table.write("pretrain/hssl", JobState(state="done"))
    write_json(table.folder("pretrain/hssl") / "pretraining.json", {"seconds": 1, "weights": "hssl.safetensors"})
    folder = Workspace(bare).training(plan, DATASETS[0], "hssl", 0) / "fold_0"
    folder.mkdir(parents=True)
    for path in (bare / "hssl.json", folder / "transfer.json"):
        path.write_text(content)
        with pytest.raises(HSSLError, match=f"^{path} is not a valid "):
            read_content(bare)
        path.unlink()


def test_a_missing_jinja2_names_its_remedy(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(HSSLError, match=r'pip install "hssl_nnunet\[benchmark\]"'):
        write_report(bare)
    assert not (bare / "report.html").exists()
