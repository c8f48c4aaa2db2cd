"""`hssl slurm` against a real SLURM: arrays, a chain of jobs, a requeue that resumes, on one node and on two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_cluster
from tiny_tasks import PLANS, PRETRAINING, TASKS, write_task

from hssl_nnunet import slurm_scripts
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.slurm_scripts import Allocation, Script, submit, write_scripts

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="SLURM runs on Linux")]
EPOCHS = 24
Shell = Callable[..., str]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if reason := slurm_cluster.why_not():
        pytest.skip(reason)
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as variables:
        yield variables


@pytest.fixture
def shell(cluster: dict[str, str]) -> Shell:
    return shell_of(cluster)


def shell_of(cluster: dict[str, str]) -> Shell:
    """Runs one of SLURM's commands."""

    def call(*words: str) -> str:
        return subprocess.run(words, env={**os.environ, **cluster}, capture_output=True, text=True, check=True).stdout

    return call


def wait_for(what: str, condition: Callable[[], object], seconds: int = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.3)


def queued(shell: Shell) -> dict[str, str]:
    """Name -> state of every job (or array) in the queue."""
    lines = shell("squeue", "-h", "-o", "%j %T").split("\n")
    return dict(line.split() for line in lines if line)


def prepare(run: Callable[..., str], folder: Path) -> None:
    """Two tiny tasks as raw datasets."""
    for number, (name, shape, spacing) in TASKS.items():
        write_task(folder / f"Task{number}_{name}", shape, spacing)
        run("hssl", "convert_msd", "-i", f"Task{number}_{name}")


def lengthen(environment: dict[str, str], **values: int) -> None:
    """A pretraining that lasts long enough to be interrupted, of tiny steps."""
    path = Path(environment["nnUNet_preprocessed"]) / "Dataset900_Corpus" / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    plans["hssl"]["pretraining"].update({**PRETRAINING, "num_epochs": EPOCHS, **values})
    path.write_text(json.dumps(plans))
    split = [{"train": ["case_0", "case_1", "case_2"], "val": ["case_3"]}]  # too few cases for nnU-Net's five folds
    (path.parent.parent / "Dataset061_Ball" / "splits_final.json").write_text(json.dumps(split))


def test_preprocessing_then_a_chain_whose_pretraining_is_requeued(
    run: Callable[..., str], shell: Shell, cluster: dict[str, str], environment: dict[str, str], tmp_path: Path
) -> None:
    prepare(run, tmp_path)
    typed = ("-d", *TASKS, "--preset", "cpu", "-np", 1)
    said = run("hssl", "slurm", "preprocess", "--submit", *typed, **cluster)
    assert "Submitted preprocess: job" in said
    wait_for("preprocessing", lambda: not queued(shell))
    logs = sorted((tmp_path / "slurm").glob("preprocess_*.log"))
    assert [log.name.rpartition("_")[2] for log in logs] == ["0.log", "1.log"]  # one dataset a task

    run("hssl", "corpus", "-d", *TASKS, "-o", 900, "-p", PLANS, "-np", 1)
    lengthen(environment)
    chain = ("chain", 900, "-t", 61, "-f", 0, "-p", PLANS, "--submit")
    jobs = dict(
        line.removeprefix("Submitted ").split(": job ")
        for line in run("hssl", "slurm", *chain, **cluster).splitlines()
        if line.startswith("Submitted")
    )
    assert list(jobs) == ["pretrain_900", "seed_900", "finetune_900"]
    assert queued(shell)["hssl_finetune_900"] == "PENDING"
    results = Path(environment["nnUNet_results"])
    wait_for("a checkpoint", lambda: list(results.rglob("checkpoint_latest.pth")))
    shell("scancel", "--batch", "--signal=USR1", jobs["pretrain_900"])  # what SLURM sends before the time limit
    wait_for("weights", lambda: list(results.rglob("hssl.safetensors")))
    log = next((tmp_path / "slurm").glob("pretrain_900_*.log")).read_text()
    assert "queued again" in log and log.count("hssl pretrain 900") == 2
    assert log.count("Epoch time") < 2 * EPOCHS  # the second start went on where the first was stopped

    seeded = Path(environment["nnUNet_preprocessed"]) / "Dataset061_Ball" / f"{PLANS}_HSSL.json"
    wait_for("the seeded plans", seeded.is_file)
    wait_for("fine-tuning", lambda: list(results.rglob("fold_0/transfer.json")))
    shell("scancel", jobs["finetune_900"])
    assert "pretrained weights" in next((tmp_path / "slurm").glob("finetune_900_*.log")).read_text()


def test_two_nodes_pretrain_together_and_go_on_after_a_requeue(
    run: Callable[..., str], environment: dict[str, str], tmp_path: Path
) -> None:
    if reason := slurm_cluster.why_not():
        pytest.skip(reason)
    prepare(run, tmp_path)
    run("hssl", "plan_and_preprocess", "-d", *TASKS, "--preset", "cpu", "-np", 1)
    run("hssl", "corpus", "-d", *TASKS, "-o", 900, "-p", PLANS, "-np", 1)
    lengthen(environment, chunks_per_step=2)
    results = Path(environment["nnUNet_results"])
    with slurm_cluster.hosts(tmp_path, 2) as nodes:
        with slurm_cluster.cluster(tmp_path / "cluster", nodes, slurm_cluster.BRIDGE) as variables:
            shell = shell_of(variables)
            said = run("hssl", "slurm", "pretrain", "--nodes", 2, "--submit", 900, **variables)
            job = said.partition("Submitted pretrain_900: job ")[2].split()[0]
            wait_for("a checkpoint", lambda: list(results.rglob("checkpoint_latest.pth")))
            assert set(shell("squeue", "-h", "-j", job, "-o", "%N").split()) == {"node[1-2]"}
            shell("scancel", "--batch", "--signal=USR1", job)
            wait_for("the end", lambda: not queued(shell))
    log = next((tmp_path / "slurm").glob("pretrain_900_*.log")).read_text()
    assert list(results.rglob("hssl.safetensors")), log[-4000:]
    assert "queued again" in log and log.count("torchrun") == 2
    assert EPOCHS <= log.count("Epoch time") < 2 * EPOCHS  # rank 0 alone speaks; the second start went on


# the processes of the second node are lost, those of the first do not notice
LOST = """
import os, sys, time
if os.environ["GROUP_RANK"] == "1":
    sys.exit("lost")
time.sleep(300)
"""


def test_a_node_that_is_lost_does_not_keep_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := slurm_cluster.why_not():
        pytest.skip(reason)
    monkeypatch.setattr(slurm_scripts, "SECONDS_FOR_OTHER_NODES", 3)
    (tmp_path / "program.py").write_text(LOST)
    script = Script(
        name="lost", commands=((str(tmp_path / "program.py"),),), allocation=Allocation(nodes=2, processes=2)
    )
    with slurm_cluster.hosts(tmp_path, 2) as nodes:
        with slurm_cluster.cluster(tmp_path / "cluster", nodes, slurm_cluster.BRIDGE) as variables:
            shell = shell_of(variables)
            monkeypatch.setenv("SLURM_CONF", variables["SLURM_CONF"])
            job = submit([script], write_scripts([script], tmp_path / "slurm"))[script.name]
            wait_for("the end", lambda: not queued(shell), seconds=150)
            assert "JobState=FAILED" in shell("scontrol", "show", "job", job)


def test_what_sbatch_refuses_is_said(
    run: Callable[..., str], cluster: dict[str, str], environment: dict[str, str], tmp_path: Path
) -> None:
    prepare(run, tmp_path)
    said = run("hssl", "slurm", "preprocess", "--sbatch=--partition=nowhere", "--submit", "-d", 61, code=1, **cluster)
    assert "sbatch refused" in said and "nowhere" in said


def test_a_failed_job_takes_those_after_it_along_in_a_folder_of_any_name(
    shell: Shell, cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster["SLURM_CONF"])
    folder = tmp_path / 'two words\' "5%j"'
    options = Allocation(options=('--comment=it\'s "one" word', "--time=9", "--time=24"))
    first = Script(name="pretrain_My-Limbs", commands=(("false",),), allocation=options)
    second = Script(name="seed_My-Limbs", commands=(("echo", "ran"),), after=(first.name,))
    third = Script(name="finetune_My-Limbs", commands=(("echo", "ran"),) * 2, after=(second.name,))
    scripts = [first, second, third]
    ids = submit(scripts, write_scripts(scripts, folder))
    wait_for("the end of all three", lambda: not queued(shell))
    shown = shell("scontrol", "show", "job", ids[first.name])
    assert 'Comment=it\'s "one" word' in shown and "TimeLimit=00:24:00" in shown
    assert [log.name for log in folder.glob("*.log")] == [f"{first.name}_{ids[first.name]}.log"]
    said = shell("bash", str(folder / "submit.sh"))
    wait_for("the end of what the script submits", lambda: not queued(shell))
    assert [line.partition(":")[0] for line in said.splitlines()] == [script.name for script in scripts]
    assert len(list(folder.glob("*.log"))) == 2


def test_relative_paths_are_those_of_where_the_scripts_were_written(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    typed = tmp_path / 'two words\' "5%j"'
    typed.mkdir()
    monkeypatch.chdir(typed)
    (path,) = write_scripts([Script(name="where", commands=(("touch", "here"),))], Path("slurm"))
    monkeypatch.chdir(tmp_path)
    shell("sbatch", str(path))
    wait_for("the job", lambda: not queued(shell))
    assert (typed / "here").is_file()


def test_without_slurm_submitting_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(HSSLError, match="leave --submit away"):
        submit([], [])
