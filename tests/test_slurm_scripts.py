"""What `hssl slurm` writes; it is run in tests/e2e/test_slurm.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hssl_nnunet import slurm
from hssl_nnunet.cli import app
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.slurm import Allocation, Script


def tasks(script: Script) -> list[str]:
    return [" ".join(words) for words in script.commands]


def run_as_task(text: str, folder: Path, index: int, **programs: str) -> str:
    """Run a script by bash as a task of an array, our commands replaced by ones that print their words."""
    for name, body in {"hssl": 'echo "hssl: $*"', **programs}.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    own = f"export PATH={Path(sys.executable).parent}:"
    assert own in text
    text = text.replace(own, f"export PATH={folder}:")
    environment = {"PATH": "/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", "-c", text],
        capture_output=True,
        text=True,
        env={**environment, "SLURM_JOB_NODELIST": "n[1-2]"},
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
    assert tasks(slurm.benchmarking(["-d", "4", "-o", "b"], 2, Allocation())) == [
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
    text = slurm.render(script, tmp_path)
    assert "#SBATCH --array=0-1\n#SBATCH --mem=4G\n" in text
    assert "hssl: finetune 4 3d_fullres 1 -p a plan's --c" in run_as_task(text, tmp_path, 1)
    failing = text.replace("hssl finetune", "false finetune")
    assert subprocess.run(["bash", "-c", failing], capture_output=True, check=False).returncode == 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_several_nodes_meet_at_the_first_one(tmp_path: Path) -> None:
    text = slurm.render(slurm.pretraining("900", ["900"], Allocation(nodes=2, processes=4)), tmp_path)
    programs = {
        "scontrol": "printf 'n1\\nn2\\n'",
        "srun": 'SLURM_NODEID=1 "$@"',
        "torchrun": 'echo "torchrun: $*"',
    }
    said = run_as_task(text, tmp_path, 0, **programs)
    assert "torchrun: --nproc_per_node=4 --nnodes=2 --node_rank=1 --master_addr=n1 --master_port=29500" in said
    assert f"{Path(sys.executable).parent / 'hssl'} pretrain 900 --c" in said
    single = slurm.render(slurm.pretraining("900", ["900"], Allocation(processes=2)), tmp_path)
    assert "torchrun --nproc_per_node=2 --standalone" in single and "srun" not in single


def test_options_may_come_before_the_corpus(tmp_path: Path) -> None:
    typed = ["slurm", "pretrain", "--scripts", str(tmp_path), "-c", "3d_lowres", "900"]
    result = CliRunner().invoke(app, typed)
    assert result.exit_code == 0, result.output
    assert "hssl pretrain -c 3d_lowres 900 --c" in (tmp_path / "pretrain_900.sbatch").read_text()


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
