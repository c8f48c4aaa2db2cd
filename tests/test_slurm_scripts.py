"""What `hssl slurm` writes; it is run in tests/e2e/test_slurm.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hssl_nnunet import slurm
from hssl_nnunet.cli import app
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.plan_schema import TargetBlock, finetuning_plan, load_preset, pretraining_plan
from hssl_nnunet.slurm_scripts import Allocation, Script, render, write_scripts
from hssl_nnunet.typed_json import to_json


def tasks(script: Script) -> list[str]:
    return [" ".join(words) for words in script.commands]


def with_programs(text: str, folder: Path, **programs: str) -> str:
    """A script that finds programs of these bodies instead of the true ones."""
    for name, body in programs.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    own = f"export PATH={Path(sys.executable).parent}:"
    assert own in text
    return text.replace(own, f"export PATH={folder}:")


def run_as_task(text: str, folder: Path, index: int, variables: dict[str, str] | None = None, **programs: str) -> str:
    """Run a script by bash as a task of an array, our commands replaced by ones that print their words."""
    text = with_programs(text, folder, **{"hssl": 'echo "hssl: $*"', **programs})
    environment = {"PATH": "/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", "-c", text],
        capture_output=True,
        text=True,
        env={**environment, "SLURM_JOB_NODELIST": "n[1-2]", **(variables or {})},
        check=False,
    )
    assert all("Done" in line for line in done.stderr.splitlines())  # bash's own word on the ended command
    return done.stdout


def test_folds_and_datasets_become_tasks() -> None:
    assert tasks(slurm.finetuning(["4", "3d_fullres", "0", "1", "-p", "X"], Allocation())) == [
        "hssl finetune 4 3d_fullres 0 -p X --c",
        "hssl finetune 4 3d_fullres 1 -p X --c",
    ]
    assert tasks(slurm.preprocessing(["--preset", "cpu", "-d", "4", "51", "-np", "2"], Allocation())) == [
        "hssl plan_and_preprocess -d 4 --preset cpu -np 2",
        "hssl plan_and_preprocess -d 51 --preset cpu -np 2",
    ]
    assert tasks(slurm.preprocessing(["-d", "4", "-np", "2", "-d", "51"], Allocation())) == [
        "hssl plan_and_preprocess -d 4 -np 2",
        "hssl plan_and_preprocess -d 51 -np 2",
    ]
    assert tasks(slurm.benchmarking(["-d", "4", "-o", "b"], 2, Path("b"), Allocation())) == [
        "hssl benchmark run -d 4 -o b --shard 1/2",
        "hssl benchmark run -d 4 -o b --shard 2/2",
    ]
    with pytest.raises(HSSLError, match="at least one fold"):
        slurm.finetuning(["4", "3d_fullres", "-p", "X"], Allocation())
    with pytest.raises(HSSLError, match="at least one dataset"):
        slurm.preprocessing(["-np", "2"], Allocation())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_task_runs_its_own_command_and_the_script_ends_as_it_does(tmp_path: Path) -> None:
    script = slurm.finetuning(["4", "3d_fullres", "0", "1", "-p", "a plan's"], Allocation(options=("--mem=4G",)))
    text = render(script, tmp_path)
    assert "#SBATCH --array=0-1\n#SBATCH --mem=4G\n" in text
    assert "hssl: finetune 4 3d_fullres 1 -p a plan's --c" in run_as_task(text, tmp_path, 1)
    failing = text.replace("hssl finetune", "false finetune")
    assert subprocess.run(["bash", "-c", failing], capture_output=True, check=False).returncode == 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_several_nodes_meet_at_the_first_one(tmp_path: Path) -> None:
    text = render(slurm.pretraining("900", ["900"], tmp_path, Allocation(nodes=2, processes=4)), tmp_path)
    programs = {
        "scontrol": "printf 'n1\\nn2\\n'",
        "srun": 'echo "of $SRUN_CPUS_PER_TASK processors, $1"; shift; SLURM_NODEID=1 "$@"',
        "torchrun": 'echo "torchrun: $*"',
    }
    variables = {"SLURM_JOB_ID": "1234567", "SLURM_CPUS_PER_TASK": "6"}
    said = run_as_task(text, tmp_path, 0, variables, **programs)
    assert "torchrun: --nproc_per_node=4 --nnodes=2 --node_rank=1 --master_addr=n1 --master_port=24567" in said
    assert f"{Path(sys.executable).parent / 'hssl'} pretrain 900 --c" in said
    assert "of 6 processors, --wait=60" in said
    # another job whose first node is the same one; none of its processors is asked for, hence srun's default stays
    other = run_as_task(text, tmp_path, 0, {"SLURM_JOB_ID": "1234568"}, **programs)
    assert "--master_port=24568" in other and "of  processors" in other
    single = render(slurm.pretraining("900", ["900"], tmp_path, Allocation(processes=2)), tmp_path)
    assert "torchrun --nproc_per_node=2 --standalone" in single and "srun" not in single


def asked_again(folder: Path, script: Script, restarts: int, work: str = "") -> tuple[int, str]:
    """Exit code and words of a script whose time is nearly up when it has been queued again `restarts` times.

    By then its command has done the `work`.
    """
    programs = {"hssl": f"{work}\necho begun; sleep 60", "scontrol": 'echo "scontrol $*"'}
    text = with_programs(render(script, folder), folder, **programs)
    environment = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(["bash", "-c", text], env=environment, stdout=out, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while "begun" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    return process.wait(20), log.read_text()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_preprocessing_is_not_queued_again_for_ever(tmp_path: Path) -> None:
    script = slurm.preprocessing(["-d", "4"], Allocation())
    _, said = asked_again(tmp_path, script, slurm.MOST_REQUEUES_OF_PREPROCESSING - 1)
    assert "scontrol requeue 7" in said
    code, said = asked_again(tmp_path, script, slurm.MOST_REQUEUES_OF_PREPROCESSING)
    assert code == 1 and "requeue" not in said and "more --time" in said


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_training_is_queued_again_as_long_as_it_comes_to_a_checkpoint(tmp_path: Path) -> None:
    results = tmp_path / "two words" / "fold_all"
    results.mkdir(parents=True)
    script = slurm.pretraining("900", ["900"], results, Allocation())
    saving = f'cd "{results}"; touch new; mv new checkpoint_{{}}.pth'
    for restarts, saved in ((0, "best"), (1, "latest"), (1000, "latest"), (1001, "final")):
        _, said = asked_again(tmp_path, script, restarts, saving.format(saved))
        assert "scontrol requeue 7" in said, saved
    for work in ("", saving.format("best")):  # which --c does not go on from where there is a later kind
        code, said = asked_again(tmp_path, script, 2, work)
        assert code == 1 and "scontrol" not in said
        assert "has saved no checkpoint: not queued again" in said and "lower `save_every`" in said
    shutil.rmtree(results)
    assert asked_again(tmp_path, script, 0)[0] == 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_benchmark_is_queued_again_as_long_as_it_comes_to_something(tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    script = slurm.benchmarking(["-d", "4", "-o", str(folder)], 1, folder, Allocation())
    run, training = folder / "runs" / "D" / "5%", folder / "nnUNet_results" / "a training" / "fold_0"
    saving = f'cd "{training}"; touch new; mv new checkpoint_latest.pth'
    for work in (f'mkdir -p "{training}"; {saving}', saving, f'mkdir -p "{run}"; touch "{run}/predicted.nii.gz"'):
        assert "scontrol requeue 7" in asked_again(tmp_path, script, 1000, work)[1], work
    # what each start writes anew whatever it comes to
    for work in ("", f'touch "{training}/log.txt" "{folder}/benchmark.json"; mkdir -p "{folder}/jobs"'):
        code, said = asked_again(tmp_path, script, 1, work)
        assert code == 1 and "has saved no checkpoint: not queued again" in said


def test_spaces_and_quotes_are_written_as_sbatch_reads_them(tmp_path: Path) -> None:
    allocation = Allocation(options=("--mem=4G", '--comment=a "b" \\ c'))
    lines = render(slurm.finetuning(["4", "3d_fullres", "0"], allocation), tmp_path / "two words 5%").split("\n")
    assert f'#SBATCH "--output={tmp_path}/two words 5%%/finetune_4_%j.log"' in lines
    assert "#SBATCH --mem=4G" in lines
    assert r'#SBATCH "--comment=a \"b\" \\ c"' in lines


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_submitting_by_the_script_hands_on_the_ids_of_jobs_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    first = Script(name="pretrain_Dataset900_Two-Limbs", commands=(("true",),))
    second = Script(name="seed_Dataset900_Two-Limbs", commands=(("true",),), after=(first.name,))
    write_scripts([first, second], folder)
    log, programs = tmp_path / "log", tmp_path / "bin"
    programs.mkdir()
    fake = programs / "sbatch"
    fake.write_text(f'#!/bin/bash\nprintf "%s|" "$@" >> "{log}"; echo >> "{log}"; echo "$(wc -l < "{log}")0;cluster"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", str(folder / "submit.sh")],
        env={"PATH": f"{programs}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{first.name}: 10;cluster", f"{second.name}: 20;cluster"]
    assert log.read_text().splitlines() == [
        f"--parsable|{folder}/{first.name}.sbatch|",
        f"--parsable|--dependency=afterok:10|--kill-on-invalid-dep=yes|{folder}/{second.name}.sbatch|",
    ]


NETWORK = {"network_class_name": "a.b.PlainConvUNet"}
CONFIGURATIONS = {
    "3d_fullres": {"data_identifier": "images", "architecture": NETWORK, "batch_size": 2},
    "3d_lowres": {"data_identifier": "small_images", "architecture": NETWORK},
    "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
}


def write_corpus_plans(nnunet_folders: dict[str, Path], **values: object) -> Path:
    """Plans of a corpus 900, and a target 61."""
    write_target(nnunet_folders)
    domain = {"dataset_name": "Dataset061_Ball", "plans_name": "nnUNetPlans", "data_identifier": "d", "modality": "CT"}
    domain |= {"groups": ["g"], "num_images": 4, "spacing": [1, 1, 1], "patch_size": [8, 8, 8], "architecture": NETWORK}
    pretraining = to_json(pretraining_plan(load_preset("default"), **values))
    block = {"role": "corpus", "format_version": 1, "domains": [domain], "pretraining": pretraining}
    path = nnunet_folders["nnUNet_preprocessed"] / "Dataset900_Corpus" / "nnUNetPlans.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"plans_name": "nnUNetPlans", "configurations": CONFIGURATIONS, "hssl": block}))
    return path


def write_target(
    nnunet_folders: dict[str, Path], name: str = "Dataset061_Ball", plans_name: str = "nnUNetPlans"
) -> Path:
    """Plans of a target of which 3d_fullres is preprocessed, and its raw folder."""
    raw, folder = (nnunet_folders[f"nnUNet_{kind}"] / name for kind in ("raw", "preprocessed"))
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "imagesTr" / "case_0_0000.nii.gz").touch()
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0}, "numTraining": 5, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(about))
    (folder / "images").mkdir(parents=True)
    for case in range(5):
        (folder / "images" / f"case_{case}.pkl").touch()
    path = folder / f"{plans_name}.json"
    plans = {"plans_name": plans_name, "configurations": CONFIGURATIONS}
    if plans_name.endswith("_HSSL"):
        finetuning = finetuning_plan(load_preset("cpu"))
        plans["hssl"] = to_json(TargetBlock(weights=None, weights_sha256=None, finetuning=finetuning))
    path.write_text(json.dumps(plans))
    return path


def hssl_slurm(folder: Path, *typed: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["slurm", typed[0], "--scripts", str(folder), *typed[1:]])
    return result.exit_code, result.output if result.exception is None else f"{result.output}{result.exception}"


def test_each_job_of_a_chain_gets_its_own_options(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    write_corpus_plans(nnunet_folders)
    common, gpus = ("--sbatch", "--time=9 --account=us"), ("--pretrain-sbatch", "--gres=gpu:4 --time=24")
    one = ("--finetune-sbatch", "--gres=gpu:1")
    folder = tmp_path / "slurm"
    code, said = hssl_slurm(folder, "chain", "900", "-t", "61", *common, *gpus, "--processes", "4", *one)
    assert code == 0, said
    own = {
        name: [line.removeprefix("#SBATCH ") for line in (folder / f"{name}_900.sbatch").read_text().split("\n")]
        for name in ("pretrain", "seed", "finetune")
    }
    kept = ("--time", "--account", "--gres")
    assert {name: [line for line in lines if line.startswith(kept)] for name, lines in own.items()} == {
        "pretrain": ["--time=9", "--account=us", "--gres=gpu:4", "--time=24"],  # sbatch takes the later one
        "seed": ["--time=9", "--account=us"],
        "finetune": ["--time=9", "--account=us", "--gres=gpu:1"],
    }
    assert "--nproc_per_node=4" in (folder / "pretrain_900.sbatch").read_text()
    assert "torchrun" not in (folder / "finetune_900.sbatch").read_text()


@pytest.mark.parametrize(
    "typed",
    [
        ("pretrain", "--nodes", "2", "--processes", "4", "900"),
        ("pretrain", "900", "-num_gpus", "8"),
        ("chain", "900", "-t", "61", "--processes", "8"),
    ],
)
def test_processes_that_cannot_share_a_step_are_refused_before_they_wait_in_a_queue(
    typed: tuple[str, ...], nnunet_folders: dict[str, Path], tmp_path: Path
) -> None:
    path = write_corpus_plans(nnunet_folders, chunks_per_step=12)
    code, said = hssl_slurm(tmp_path / "slurm", *typed)
    assert code == 1 and not (tmp_path / "slurm").exists()
    assert f"12 chunks cannot be shared out evenly among 8 processes. In {path}" in said
    assert "set `chunks_per_step` under `hssl`, `pretraining` to a multiple of 8, such as 16" in said
    plans = json.loads(path.read_text())
    plans["hssl"]["pretraining"]["chunks_per_step"] = 16
    path.write_text(json.dumps(plans))
    assert hssl_slurm(tmp_path / "slurm", *typed)[0] == 0


def test_gpus_of_torchrun_and_of_the_command_are_not_both_named(
    nnunet_folders: dict[str, Path], tmp_path: Path
) -> None:
    write_corpus_plans(nnunet_folders, chunks_per_step=16)
    code, said = hssl_slurm(tmp_path / "slurm", "pretrain", "--processes", "4", "900", "-num_gpus", "4")
    assert code == 1 and "-num_gpus 4 beside --nodes 1 --processes 4: leave -num_gpus out" in said
    assert not (tmp_path / "slurm").exists()


def test_each_task_looks_for_its_own_checkpoints(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    write_corpus_plans(nnunet_folders)
    write_target(nnunet_folders, "Dataset064_Seeded", "nnUNetPlans_HSSL")

    def found(script: str, *typed: str) -> list[str]:
        code, said = hssl_slurm(tmp_path, *typed)
        assert code == 0, said
        words = re.findall(r"; folder=(\S+) ;;", (tmp_path / f"{script}.sbatch").read_text())
        return [str(Path(word).relative_to(nnunet_folders["nnUNet_results"])) for word in words]

    pretraining = "Dataset900_Corpus/nnUNetTrainerHSSLPretrain__nnUNetPlans__3d_lowres/fold_all"
    assert found("pretrain_900", "pretrain", "900", "-c", "3d_lowres") == [pretraining]
    run = "Dataset064_Seeded/nnUNetTrainerHSSL{}__nnUNetPlans_HSSL__3d_fullres"
    tuned = [f"{run.format('Finetune')}/fold_{fold}" for fold in ("1", "all")]
    assert found("finetune_64", "finetune", "64", "3d_fullres", "01", "all") == tuned
    scratch = ("finetune", "64", "3d_fullres", "0", "--scratch")
    assert found("scratch_64", *scratch) == [f"{run.format('Scratch')}/fold_0"]
    chained = [f"{run.format('Finetune').replace('064_Seeded', '061_Ball')}/fold_{fold}" for fold in ("0", "all")]
    assert found("finetune_900", "chain", "900", "-t", "61", "-f", "0", "all") == chained
    assert found("pretrain_900", "chain", "900", "-t", "61") == [pretraining.replace("lowres", "fullres")]
    assert found("seed_900", "chain", "900", "-t", "61") == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone binds a process to processors")
def test_worker_processes_stay_within_the_allocation() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from hssl_nnunet.corpus.parallel import default_processes; print(default_processes())"
    environment = {**os.environ, "nnUNet_def_n_proc": "8"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_options_may_come_before_the_corpus(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    write_corpus_plans(nnunet_folders)
    code, said = hssl_slurm(tmp_path, "pretrain", "-c", "3d_lowres", "900")
    assert code == 0, said
    assert "hssl pretrain -c 3d_lowres 900 --c" in (tmp_path / "pretrain_900.sbatch").read_text()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("pretrain", "99"), "Dataset '99' was not found .* Run `hssl corpus -d DATASET... -o 99` first"),
        (("pretrain", "61"), "Dataset061_Ball holds no plans with an `hssl` block"),
        (("pretrain", "900", "-c", "3d_fulres"), "Unknown configuration .*'3d_fulres'. Known: .*3d_fullres"),
        (("pretrain", "900", "-p", "X"), "X.json does not exist. Plans there: nnUNetPlans"),
        (("pretrain", "900", "-device", "gpu"), "Unknown device 'gpu'. Known: cpu, cuda, mps"),
        (("finetune", "99", "3d_fullres", "0"), "Dataset '99' was not found"),
        (("finetune", "61", "3d_fullres", "0"), "holds no seeded plans .*hssl seed -d Dataset061_Ball"),
        (("finetune", "61", "3d_fulres", "0", "-p", "nnUNetPlans"), "Unknown configuration .*'3d_fulres'"),
        (("finetune", "61", "3d_lowres", "0", "-p", "nnUNetPlans"), "small_images does not exist"),
        (("finetune", "64", "3d_fullres", "0", "x"), "Fold 'x' is neither a number"),
        (("finetune", "64", "3d_fullres", "0", "7"), "There is no fold 7"),
        (("finetune", "64", "3d_fullres", "0", "-num_gpus", "4"), "-num_gpus 4, but .* has a `batch_size` of 2"),
        (("finetune", "61", "3d_lowres", "0"), "hssl seed -d Dataset061_Ball .* -c 3d_lowres"),
        (("preprocess", "-d", "61", "99"), "Dataset '99' was not found"),
        (("preprocess", "-d", "61", "--preset", "huge"), "Unknown preset 'huge'"),
        (("preprocess", "-d", "61", "-p", "Mine"), "has no Mine.json"),
        (("preprocess", "-d", "61", "-np", "8", "4"), "Got 2 numbers of processes, -np 8 4, for 1 configuration"),
        (("preprocess", "-d", "61", "-c", "3d_fulres"), "Unknown configuration '3d_fulres'. Known: 2d"),
        (("benchmark", "-d", "99", "-o", "b"), "Dataset '99' was not found"),
        (("benchmark", "-d", "61", "-o", "b", "--budgets", "0"), "Budget '0'"),
        (("benchmark", "-d", "61", "-o", "b", "--arms", "fooo"), "Unknown arm 'fooo'"),
        (("benchmark", "-d", "61", "-o", "b", "--preset", "cpu"), "nnUNetCPUPlans.json does not exist.*--preset cpu"),
        (("benchmark", "-d", "61", "-o", "b", "-c", "3d_fulres"), "Unknown configuration .*'3d_fulres'"),
        (("chain", "99", "-t", "61"), "Dataset '99' was not found .* Run `hssl corpus"),
        (("chain", "900", "-t", "99"), "Dataset '99' was not found"),
        (("chain", "900", "-t", "61", "-t", "900"), "Dataset900_Corpus is the corpus, and has no masks"),
        (("chain", "900", "-t", "61", "-t", "62"), "nnUNetPlans.json does not exist. Plans there: nnUNetCPUPlans"),
        (("chain", "900", "-t", "63"), "plan a ResidualEncoderUNet, the corpus is pretrained with a PlainConvUNet"),
        (("chain", "900", "-t", "61", "-c", "3d_fulres"), "Unknown configuration .*'3d_fulres'"),
        (("chain", "900", "-t", "61", "-c", "3d_lowres"), "small_images does not exist"),
        (("chain", "900", "-t", "61", "-c", "3d_cascade_fullres"), "no pretraining has seen"),
        (("chain", "900", "-t", "61", "-f", "x"), "Fold 'x' is neither a number"),
        (("chain", "900", "-t", "61", "-f", "5"), "There is no fold 5"),
    ],
)
def test_a_name_that_is_wrong_does_not_wait_in_a_queue_to_be_found(
    typed: tuple[str, ...], said: str, nnunet_folders: dict[str, Path], tmp_path: Path
) -> None:
    write_corpus_plans(nnunet_folders)
    write_target(nnunet_folders, "Dataset062_Cpu", "nnUNetCPUPlans")
    write_target(nnunet_folders, "Dataset064_Seeded", "nnUNetPlans_HSSL")
    path = write_target(nnunet_folders, "Dataset063_Residual")
    path.write_text(path.read_text().replace("PlainConvUNet", "ResidualEncoderUNet"))
    code, told = hssl_slurm(tmp_path / "slurm", *typed)
    assert code == 1 and re.search(said, told), told
    assert not (tmp_path / "slurm").exists()


def test_what_is_there_is_accepted(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    write_corpus_plans(nnunet_folders)
    write_target(nnunet_folders, "Dataset062_Cpu")
    write_target(nnunet_folders, "Dataset063_Seeded", "nnUNetPlans_HSSL")
    folder = tmp_path / "slurm"
    for typed in (
        ("pretrain", "900", "-device", "cuda"),
        ("finetune", "63", "3d_fullres", "0", "all"),
        ("preprocess", "-d", "61", "62", "-c", "3d_fullres", "2d"),
        ("benchmark", "-d", "61", "--domains", "61", "62", "-o", str(tmp_path / "b"), "--budgets", "2", "5%"),
        ("chain", "900", "-t", "61", "62", "-f", "0", "1"),
    ):
        code, said = hssl_slurm(folder, *typed)
        assert code == 0, said
    assert not (tmp_path / "b").exists()


def test_a_seeded_fold_whose_weights_are_gone_does_not_wait(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    write_corpus_plans(nnunet_folders)
    path = write_target(nnunet_folders, "Dataset062_Cpu", "nnUNetPlans_HSSL")
    plans = json.loads(path.read_text())
    plans["hssl"].update(weights=str(tmp_path / "gone.safetensors"), weights_sha256="0" * 64)
    path.write_text(json.dumps(plans))
    code, said = hssl_slurm(tmp_path / "slurm", "finetune", "62", "3d_fullres", "0")
    assert code == 1 and re.search(
        "gone.safetensors, which .* names, does not exist. Put it back, or run `hssl seed", said
    )
    code, said = hssl_slurm(tmp_path / "slurm", "finetune", "62", "3d_fullres", "0", "--scratch")
    assert code == 0, said


def test_targets_of_a_chain_may_have_been_seeded_before(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    write_corpus_plans(nnunet_folders)
    code, said = hssl_slurm(tmp_path, "chain", "900", "-t", "61", "-p", "nnUNetPlans_HSSL")
    assert code == 0, said
    assert "-p nnUNetPlans -c" in (tmp_path / "seed_900.sbatch").read_text()
    assert "-p nnUNetPlans_HSSL --c" in (tmp_path / "finetune_900.sbatch").read_text()


def test_a_quote_that_is_not_closed_is_told(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    write_corpus_plans(nnunet_folders)
    code, said = hssl_slurm(tmp_path / "slurm", "pretrain", "--sbatch", '--gres="x', "900")
    assert code == 2 and "No closing quotation" in said
    assert not (tmp_path / "slurm").exists()


@pytest.mark.parametrize(
    ("sbatch", "nodes", "said"),
    [
        ("--nodes=2 --mem=4G", "1", "2 nodes, the script would use 1"),
        ("--mem=4G -N 4", "2", "4 nodes, the script would use 2"),
        ("--mem=4G -N4", "1", "4 nodes, the script would use 1"),
        ("--ntasks-per-node=4", "2", "A node has one task"),
        ("--mem=4G -n 8", "2", "A node has one task"),
        ("--nodes=2 --ntasks-per-gpu=1 --nodelist=n1,n2", "2", None),
        ("--nodes 1 --ntasks=4", "1", None),
    ],
)
def test_machines_that_a_script_would_not_use_are_not_asked_for(
    sbatch: str, nodes: str, said: str | None, nnunet_folders: dict[str, Path], tmp_path: Path
) -> None:
    write_corpus_plans(nnunet_folders)
    code, told = hssl_slurm(tmp_path / "slurm", "pretrain", "--sbatch", sbatch, "--nodes", nodes, "900")
    assert code == (2 if said else 0), told
    assert said is None or said in " ".join(told.replace("│", " ").split())
    assert (tmp_path / "slurm").exists() is (said is None)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["pretrain", "--bogus", "900"], "No such option: --bogus"),
        (["finetune", "4"], "expected DATASET CONFIGURATION FOLD..."),
        (["benchmark", "--parts", "2", "-o", "b"], "Missing option '-d'"),
    ],
)
def test_what_the_command_would_refuse_is_refused_before_it_waits_in_a_queue(
    typed: list[str], said: str, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, ["slurm", *typed[:1], "--scripts", str(tmp_path), *typed[1:]])
    assert result.exit_code == 2
    assert said in result.output
    assert not list(tmp_path.iterdir())
