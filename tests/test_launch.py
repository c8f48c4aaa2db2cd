from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hssl_nnunet import launch
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.locks import claimed
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RESULTS, ENV_TRAINERS, trainers_dir

NAME = "Dataset004_Toy"
HOLD = """
import os, sys, time
from pathlib import Path
from hssl_nnunet.locks import claimed
with claimed(Path(sys.argv[1])):
    child = os.fork()  # as nnU-Net's workers, which may outlive a killed training
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def target(nnunet_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Preprocessed folder of a dataset with seeded plans, and threads and environment restored after the test."""
    for variable in ("nnUNet_def_n_proc", "nnUNet_n_proc_DA"):
        monkeypatch.setenv(variable, "1")
    folder = nnunet_folders[ENV_PREPROCESSED] / NAME
    (folder / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    write_plans(folder, "nnUNetPlans_HSSL", role="target")
    threads = torch.get_num_threads()
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What nnU-Net's `run_training` was called with; the training itself is left out."""
    from nnunetv2.run import run_training

    made: list[dict[str, object]] = []
    monkeypatch.setattr(
        run_training, "run_training", lambda *args, **kwargs: made.append({"positional": args, **kwargs})
    )
    return made


def write_plans(folder: Path, name: str, role: str | None) -> None:
    configuration = {"data_identifier": "nnUNetPlans_3d_fullres"}
    plans = {"plans_name": name, "configurations": {"3d_fullres": configuration}}
    (folder / f"{name}.json").write_text(json.dumps(plans | ({"hssl": {"role": role}} if role else {})))


@pytest.mark.parametrize("scratch, trainer", [(False, "nnUNetTrainerHSSLFinetune"), (True, "nnUNetTrainerHSSLScratch")])
def test_finetune_is_nnunets_training_with_our_trainer(target, calls, scratch: bool, trainer: str):
    folder = launch.finetune("4", "3d_fullres", 0, scratch=scratch, device="cpu")
    assert calls == [
        {
            "positional": (NAME, "3d_fullres", "0"),
            "trainer_class_name": trainer,
            "plans_identifier": "nnUNetPlans_HSSL",
            "num_gpus": 1,
            "continue_training": False,
            "device": torch.device("cpu"),
        }
    ]
    assert folder == Path(os.environ[ENV_RESULTS]) / NAME / f"{trainer}__nnUNetPlans_HSSL__3d_fullres" / "fold_0"
    assert os.environ[ENV_TRAINERS] == str(trainers_dir())


def test_the_folder_is_the_one_that_nnunet_trains_in(target, calls):
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    folder = launch.finetune(4, "3d_fullres", "all", device="cpu")
    assert folder == Path(get_output_folder(4, launch.FINETUNE_TRAINER, "nnUNetPlans_HSSL", "3d_fullres", "all"))


def test_pretrain_takes_fold_all_and_the_only_corpus_plans(target, calls):
    write_plans(target, "nnUNetPlans", role=None)
    write_plans(target, "nnUNetCPUPlans", role="corpus")
    launch.pretrain(4, device="cpu", continue_training=True)
    assert calls[0]["positional"] == (NAME, "3d_fullres", "all")
    assert calls[0]["plans_identifier"] == "nnUNetCPUPlans"
    assert calls[0]["continue_training"] is True


def test_a_finished_training_is_not_overwritten(target, calls):
    folder = launch.finetune(4, "3d_fullres", 0, device="cpu")
    (folder / "checkpoint_final.pth").touch()
    with pytest.raises(HSSLError, match=r"checkpoint_final.*--c.*move the folder away"):
        launch.finetune(4, "3d_fullres", 0, device="cpu")
    assert len(calls) == 1
    launch.finetune(4, "3d_fullres", 0, device="cpu", continue_training=True)
    launch.finetune(4, "3d_fullres", 1, device="cpu")
    assert len(calls) == 3


def test_ctrl_c_names_the_way_back(target, monkeypatch, capsys):
    from nnunetv2.run import run_training

    def stopped(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_training, "run_training", stopped)
    with pytest.raises(KeyboardInterrupt):
        launch.finetune(4, "3d_fullres", 0, device="cpu")
    assert "No checkpoint was written" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_at_the_command_line_gives_130_and_no_traceback(target):
    code = (
        "import time, nnunetv2.run.run_training as r\n"
        "def train(*a, **k): print('training', flush=True); time.sleep(60)\n"
        "r.run_training = train\n"
        "from hssl_nnunet.cli import main\n"
        "main(['finetune', '4', '3d_fullres', '0', '-device', 'cpu'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Stopped." in said
    assert "Traceback" not in said


@pytest.mark.skipif(sys.platform == "win32", reason="no record locks")
def test_one_training_at_a_time_in_a_folder_and_a_killed_one_leaves_it_free(tmp_path: Path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(HSSLError, match="Another process trains"), claimed(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with claimed(tmp_path):  # although the killed training's worker still lives
            os.kill(worker, 0)
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_plans_must_be_unambiguous(target):
    write_plans(target, "A_HSSL", role="target")
    write_plans(target, "B_HSSL", role="target")
    assert launch.target_plans_name(NAME) == "nnUNetPlans_HSSL"
    (target / "nnUNetPlans_HSSL.json").unlink()
    with pytest.raises(HSSLError, match="A_HSSL, B_HSSL.*-p"):
        launch.target_plans_name(NAME)
    (target / "B_HSSL.json").unlink()
    assert launch.target_plans_name(NAME) == "A_HSSL"
    with pytest.raises(HSSLError, match="hssl corpus"):
        launch.corpus_plans_name(NAME)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"configuration": "3d_lowres"}, "Unknown configuration .*'3d_lowres'. Known: 3d_fullres"),
        ({"fold": "first"}, "Fold 'first'"),
        ({"plans_name": "nnUNetPlans_Typo"}, "nnUNetPlans_Typo.json does not exist"),
        ({"device": "tpu"}, "Unknown device 'tpu'. Known: cpu, cuda, mps"),
        ({"num_gpus": 2}, "-num_gpus 2, but 0 GPUs are visible for -device cpu"),
        ({"dataset": 7}, "Dataset '7' was not found"),
    ],
)
def test_mistakes_are_found_before_the_training_starts(target, calls, arguments: dict[str, object], message: str):
    right = {"dataset": 4, "configuration": "3d_fullres", "fold": 0, "device": "cpu"}
    with pytest.raises(HSSLError, match=message):
        launch.finetune(**(right | arguments))
    assert not calls


def test_missing_preprocessed_images_are_named(target, calls):
    (target / "nnUNetPlans_3d_fullres").rmdir()
    with pytest.raises(HSSLError, match="nnUNetPlans_3d_fullres does not exist.*plan_and_preprocess"):
        launch.finetune(4, "3d_fullres", 0, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_cpu_is_taken_and_cuda_refused():
    assert launch.choose_device(None) == torch.device("cpu")
    with pytest.raises(HSSLError, match="-device cuda"):
        launch.choose_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_with_a_gpu_it_is_taken():
    assert launch.choose_device(None) == torch.device("cuda")


@pytest.mark.parametrize("cores, expected", [(2, "1"), (64, None)])
def test_only_a_small_machine_gets_fewer_workers(monkeypatch, unset, nnunet_folders, cores: int, expected: str | None):
    monkeypatch.setattr(launch, "available_cpus", lambda: cores)
    for variable in ("nnUNet_def_n_proc", "nnUNet_n_proc_DA"):
        unset(variable)
    launch.set_environment()
    assert os.environ.get("nnUNet_def_n_proc") == os.environ.get("nnUNet_n_proc_DA") == expected
    monkeypatch.setenv("nnUNet_n_proc_DA", "3")
    launch.set_environment()
    assert os.environ["nnUNet_n_proc_DA"] == "3"
