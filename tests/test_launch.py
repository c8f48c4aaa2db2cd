from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from hssl_nnunet import device, launch, which_plans
from hssl_nnunet.corpus.manifest import MANIFEST, ImageRow, write_manifest
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.locks import claimed
from hssl_nnunet.nnunet_training import mistakes_of_processes_told
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RESULTS, ENV_TRAINERS, trainers_dir
from hssl_nnunet.plan_schema import CorpusBlock, DomainPlan, TargetBlock, finetuning_plan, load_preset, pretraining_plan
from hssl_nnunet.training.resume import images_sha256
from hssl_nnunet.typed_json import to_json

NAME = "Dataset004_Toy"
EPOCHS = 2
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
    for case in range(5):
        (folder / "nnUNetPlans_3d_fullres" / f"case_{case}.pkl").touch()
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
    fullres = {"data_identifier": "nnUNetPlans_3d_fullres"}
    configurations = {"3d_fullres": fullres, "2d": {"data_identifier": "nnUNetPlans_2d"}}
    plans = {"plans_name": name, "configurations": configurations}
    (folder / f"{name}.json").write_text(json.dumps(plans | ({"hssl": to_json(block(role))} if role else {})))


def block(role: str) -> CorpusBlock | TargetBlock:
    """An `hssl` block of `EPOCHS` epochs."""
    preset = load_preset("cpu")
    if role == "target":
        finetuning = finetuning_plan(preset, num_epochs=EPOCHS)
        return TargetBlock(weights=None, weights_sha256=None, finetuning=finetuning)
    domain = DomainPlan(
        dataset_name=NAME,
        plans_name="nnUNetPlans",
        data_identifier="nnUNetPlans_3d_fullres",
        modality="MR",
        groups=("MR",),
        num_images=5,
        spacing=(1.0, 1.0, 1.0),
        patch_size=(16, 16, 16),
        architecture={},
    )
    return CorpusBlock(domains=(domain,), pretraining=pretraining_plan(preset, num_epochs=EPOCHS, warmup_epochs=0))


def finished(folder: Path, last: str, epochs: int, **init_args: object) -> None:
    """What a training of so many epochs leaves: its final checkpoint, and the file it writes last."""
    (folder / last).parent.mkdir(parents=True, exist_ok=True)
    args = {"plans": {"hssl": {"weights": None, "weights_sha256": None}}, **init_args}
    torch.save({"current_epoch": epochs, "init_args": args}, folder / "checkpoint_final.pth")
    (folder / last).touch()


@pytest.mark.parametrize("scratch, trainer", [(False, "nnUNetTrainerHSSLFinetune"), (True, "nnUNetTrainerHSSLScratch")])
def test_finetune_is_nnunets_training_with_our_trainer(target, calls, scratch: bool, trainer: str):
    folder = launch.finetune("4", "3d_fullres", 0, scratch=scratch, device="cpu")
    assert calls == [
        {
            "positional": (NAME, "3d_fullres", "0"),
            "trainer_class_name": trainer,
            "plans_identifier": "nnUNetPlans_HSSL",
            "num_gpus": 1,
            "export_validation_probabilities": False,
            "continue_training": False,
            "only_run_validation": False,
            "device": torch.device("cpu"),
        }
    ]
    assert folder == Path(os.environ[ENV_RESULTS]) / NAME / f"{trainer}__nnUNetPlans_HSSL__3d_fullres" / "fold_0"
    assert os.environ[ENV_TRAINERS] == str(trainers_dir())


def test_a_finished_training_is_validated_again_with_its_probabilities(target, calls):
    validate = partial(launch.finetune, 4, "3d_fullres", 0, device="cpu", npz=True, only_validate=True)
    with pytest.raises(HSSLError, match="fold_0 holds no checkpoint_final.pth to validate: .*not finished. Add --c"):
        validate()
    assert not any(Path(os.environ[ENV_RESULTS]).rglob("*"))  # and no empty model is left
    finished(launch.finetune(4, "3d_fullres", 0, device="cpu"), "validation/summary.json", EPOCHS)
    for continue_training in (False, True):  # SLURM's scripts always add --c
        validate(continue_training=continue_training)
        assert calls[-1]["only_run_validation"] and calls[-1]["export_validation_probabilities"]
        assert not calls[-1]["continue_training"]
    assert len(calls) == 3


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


def test_a_training_is_not_overwritten(target, calls):
    folder = launch.finetune(4, "3d_fullres", 0, device="cpu")
    (folder / "checkpoint_latest.pth").touch()
    with pytest.raises(HSSLError, match=r"already holds a training \(checkpoint_latest.pth\). Add --c to continue it"):
        launch.finetune(4, "3d_fullres", 0, device="cpu")
    (folder / "checkpoint_final.pth").touch()
    with pytest.raises(HSSLError, match=r"already holds a training \(checkpoint_final.pth, .*Add --c to continue it"):
        launch.finetune(4, "3d_fullres", 0, device="cpu")  # killed before its validation
    (folder / "validation").mkdir()
    (folder / "validation" / "summary.json").touch()
    with pytest.raises(HSSLError, match="is finished: .*Move the folder away.*raise `num_epochs` in .*_HSSL.json and"):
        launch.finetune(4, "3d_fullres", 0, device="cpu")
    assert len(calls) == 1
    launch.finetune(4, "3d_fullres", 1, device="cpu")
    launch.finetune(4, "3d_fullres", "02", device="cpu")
    assert [call["positional"][2] for call in calls] == ["0", "1", "2"]


@pytest.mark.parametrize("kind, last", [("pretrain", "hssl.safetensors"), ("finetune", "validation/summary.json")])
def test_a_finished_training_is_continued_only_when_the_plans_want_more(target, calls, capsys, kind: str, last: str):
    if kind == "pretrain":
        write_plans(target, "nnUNetPlans", role="corpus")
    arguments = (4,) if kind == "pretrain" else (4, "3d_fullres", 0)
    write_manifest(target / MANIFEST, [row("case_0")])
    run = partial(getattr(launch, kind), *arguments, device="cpu", continue_training=True)
    folder = run()
    assert len(calls) == 1
    finished(folder, last, EPOCHS)
    kept = (folder / "checkpoint_final.pth").read_bytes()
    assert run() == folder
    assert f"{folder} is already finished (`num_epochs` is {EPOCHS})" in capsys.readouterr().out
    assert len(calls) == 1 and (folder / "checkpoint_final.pth").read_bytes() == kept
    (folder / last).unlink()  # as after a stop between the last epoch and the end
    run()
    assert len(calls) == 2
    finished(folder, last, EPOCHS - 1)  # `num_epochs` was raised
    run()
    assert len(calls) == 3
    finished(folder, last, EPOCHS + 1)
    run()
    assert len(calls) == 3
    os.utime(folder / last, ns=(0, 0))  # of the end before `num_epochs` was raised
    run()
    assert len(calls) == 4


def test_a_finished_pretraining_of_other_images_is_not_taken_for_that_of_the_corpus(target, calls, capsys):
    write_plans(target, "nnUNetPlans", role="corpus")
    rows = [row("case_0"), row("case_1")]
    write_manifest(target / MANIFEST, rows)
    run = partial(launch.pretrain, 4, device="cpu", continue_training=True)
    finished(run(), "hssl.safetensors", EPOCHS, images_sha256=images_sha256(rows))
    run()
    assert "already finished" in capsys.readouterr().out
    write_manifest(target / MANIFEST, [*rows, row("case_2")])
    with pytest.raises(HSSLError, match=r"was trained on other images than the corpus' manifest.csv names now: 3"):
        run()


def test_a_finished_fold_of_other_weights_is_not_taken_for_one_of_these(target, calls, capsys):
    write_plans(target, "Own__Plans_HSSL", role="target")  # a separator of nnU-Net's in the plans' own name
    named = {"plans_name": "Own__Plans_HSSL", "device": "cpu"}
    run = partial(launch.finetune, 4, "3d_fullres", 0, continue_training=True, **named)
    before = {"hssl": {"weights": "/old.safetensors", "weights_sha256": "ab" * 32}}
    for scratch in (True, False):
        folder = run(scratch=scratch)
        finished(folder, "validation/summary.json", EPOCHS, plans=before)
    run(scratch=True)  # starts from no weights
    assert "already finished" in capsys.readouterr().out
    seeding = f"hssl seed -d {NAME} -w /old.safetensors -p Own__Plans"
    with pytest.raises(HSSLError, match=rf"was begun with weights of sha256 abababababab\.\.\. .*`{seeding}`"):
        run()


def mistaken(rank: int, message: str) -> None:
    raise HSSLError(message)


def test_a_mistake_found_by_one_of_nnunets_processes_is_told_without_a_traceback():
    with pytest.raises(HSSLError, match=r"^the plans\nname no weights$"), mistakes_of_processes_told():
        torch.multiprocessing.spawn(mistaken, ("the plans\nname no weights",), nprocs=1)
    with pytest.raises(torch.multiprocessing.ProcessRaisedException), mistakes_of_processes_told():
        torch.multiprocessing.spawn(fails, nprocs=1)


def fails(rank: int) -> None:
    raise ValueError("unexpected")


def row(case: str) -> ImageRow:
    return ImageRow(
        domain=0,
        dataset_name=NAME,
        case=case,
        channel=0,
        patient=case,
        labelled=True,
        preprocessed=f"{NAME}/nnUNetPlans_3d_fullres/{case}.b2nd",
        content_hash=case,
        spacing_mm=(1.0, 1.0, 1.0),
        shape=(8, 8, 8),
        groups=("MR",),
    )


@pytest.mark.parametrize(
    "cases, fold, message",
    [
        (
            3,
            0,
            r"^3 cases cannot make nnU-Net's five folds. Use fold `all`, or write .*splits_final.json: \[{.train.: ",
        ),
        (5, 5, "There is no fold 5, only 0, 1, 2, 3, 4: .* random split"),
    ],
)
def test_a_fold_that_nnunet_cannot_split_off(target, calls, cases: int, fold: int, message: str):
    for path in sorted((target / "nnUNetPlans_3d_fullres").glob("*.pkl"))[cases:]:
        path.unlink()
    with pytest.raises(HSSLError, match=message):
        launch.finetune(4, "3d_fullres", fold, device="cpu")
    assert not calls
    launch.finetune(4, "3d_fullres", "all", device="cpu")
    splits = [{"train": ["case_0"], "val": ["case_1"]}] * (fold + 1)
    (target / "splits_final.json").write_text(json.dumps(splits))
    launch.finetune(4, "3d_fullres", fold, device="cpu")
    assert len(calls) == 2
    with pytest.raises(HSSLError, match=f"no fold {fold + 1}"):
        launch.finetune(4, "3d_fullres", fold + 1, device="cpu")


@pytest.mark.parametrize(
    "content, message",
    [
        ({"0": {}}, "(?s)splits_final.json is not a valid .*remove it: nnU-Net then splits anew"),
        ([{"train": ["case_0"]}], "(?s)0.val: Field required"),
        ([{"train": ["case_0"], "val": ["case_1", "gone"]}], "Fold 0 of .* names 1 cases that .* lacks: gone. Correct"),
    ],
)
def test_splits_that_nnunet_would_fail_with(target, calls, content: object, message: str):
    (target / "splits_final.json").write_text(json.dumps(content))
    with pytest.raises(HSSLError, match=message):
        launch.finetune(4, "3d_fullres", 0, device="cpu")
    assert not calls


def test_results_that_are_a_file(target, calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(ENV_RESULTS, str(tmp_path / "file"))
    with pytest.raises(HSSLError, match=rf"Cannot write {tmp_path / 'file'}.*Not a directory"):
        launch.finetune(4, "3d_fullres", 0, device="cpu")
    assert not calls


def test_an_error_of_the_training_itself_is_not_taken_for_one_of_the_folder(target, monkeypatch):
    from nnunetv2.run import run_training

    def failing(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("a bug")

    monkeypatch.setattr(run_training, "run_training", failing)
    with pytest.raises(FileNotFoundError, match="a bug"):
        launch.finetune(4, "3d_fullres", 0, device="cpu")


@pytest.mark.parametrize("value, expected", [("2,1", 2), ("3", 3), ("", 5)])
def test_threads_are_those_of_the_outermost_region(monkeypatch, value: str, expected: int):
    got: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", got.append)
    monkeypatch.setattr(device, "available_cpus", lambda: 5)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    device.set_threads(torch.device("cpu"))
    assert got == [expected]


@pytest.mark.parametrize("value", ["many", "0", "²", "-1"])
def test_threads_that_are_no_number(monkeypatch, value: str):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(HSSLError, match=f"OMP_NUM_THREADS is '{value}'.*unset OMP_NUM_THREADS"):
        device.set_threads(torch.device("cpu"))


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
    assert which_plans.target_plans_name(NAME) == "nnUNetPlans_HSSL"
    (target / "nnUNetPlans_HSSL.json").unlink()
    with pytest.raises(HSSLError, match="A_HSSL, B_HSSL.*-p"):
        which_plans.target_plans_name(NAME)
    (target / "B_HSSL.json").unlink()
    assert which_plans.target_plans_name(NAME) == "A_HSSL"
    with pytest.raises(HSSLError, match="hssl corpus"):
        which_plans.corpus_plans_name(NAME)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"configuration": "3d_lowres"}, "Unknown configuration .*'3d_lowres'. Known: 2d, 3d_fullres"),
        ({"configuration": "2d"}, "_2d does not exist.*`hssl plan_and_preprocess -d Dataset004_Toy -c 2d`"),
        ({"fold": "first"}, "Fold 'first'"),
        ({"fold": "²"}, "Fold '²'"),
        ({"plans_name": "nnUNetPlans_Typo"}, "nnUNetPlans_Typo.json does not exist. Plans there: nnUNetPlans_HSSL;"),
        (
            {"plans_name": "nnUNetCPUPlans_HSSL"},
            "`hssl plan_and_preprocess -d Dataset004_Toy --preset cpu`, then `hssl seed -d .* -p nnUNetCPUPlans`",
        ),
        ({"device": "tpu"}, "Unknown device 'tpu'. Known: cpu, cuda, mps"),
        ({"num_gpus": 2}, "-num_gpus 2, but 0 GPUs are visible for -device cpu. Use -num_gpus 1"),
        ({"dataset": 7}, "Dataset '7' was not found"),
    ],
)
def test_mistakes_are_found_before_the_training_starts(target, calls, arguments: dict[str, object], message: str):
    right = {"dataset": 4, "configuration": "3d_fullres", "fold": 0, "device": "cpu"}
    with pytest.raises(HSSLError, match=message):
        launch.finetune(**(right | arguments))
    assert not calls


def test_a_corpus_that_is_not_there_is_to_be_made(target):
    with pytest.raises(HSSLError, match="Dataset '77' was not found.*`hssl corpus -d DATASET... -o 77`"):
        launch.pretrain(77)


def test_missing_seeded_plans_are_to_be_seeded_from_the_plans_that_are_there(target):
    (target / "nnUNetPlans_HSSL.json").unlink()
    with pytest.raises(HSSLError, match=f"Run `hssl plan_and_preprocess -d {NAME} -c 2d`, then `hssl seed -d {NAME} "):
        which_plans.target_plans_name(NAME, "2d")
    write_plans(target, "nnUNetCPUPlans", role=None)
    with pytest.raises(HSSLError, match=rf"Run `hssl seed -d {NAME} -w hssl.safetensors -p nnUNetCPUPlans -c 2d`\.$"):
        which_plans.target_plans_name(NAME, "2d")


def edited(path: Path, **of_fullres: object) -> None:
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"].update(of_fullres)
    path.write_text(json.dumps(plans))


def test_seeded_plans_that_preprocess_otherwise_than_the_targets_own_are_refused(target, calls):
    write_plans(target, "nnUNetPlans", role=None)
    for path in (target / "nnUNetPlans.json", target / "nnUNetPlans_HSSL.json"):
        edited(path, spacing=[1.0, 1.0, 1.0], batch_size=2)
    edited(target / "nnUNetPlans_HSSL.json", batch_size=4)  # of training alone
    launch.finetune(4, "3d_fullres", 0, device="cpu")
    edited(target / "nnUNetPlans.json", spacing=[2.0, 0.5, 0.5])
    message = rf"spacing was \[1.0, 1.0, 1.0\], is \[2.0, 0.5, 0.5\].*`hssl seed -d {NAME} -w hssl.safetensors` again"
    with pytest.raises(HSSLError, match=message):
        launch.finetune(4, "3d_fullres", 0, device="cpu")
    assert len(calls) == 1


def test_a_second_stage_the_own_plans_and_a_corpus_are_told_apart_from_seeded_plans(target, calls):
    edited(target / "nnUNetPlans_HSSL.json", previous_stage="3d_lowres")
    with pytest.raises(HSSLError, match=f"no pretraining has seen.*`nnUNetv2_train {NAME} 3d_fullres 0`"):
        launch.finetune(4, "3d_fullres", 0, device="cpu")
    write_plans(target, "nnUNetPlans", role=None)
    with pytest.raises(HSSLError, match="Add `-p nnUNetPlans_HSSL`"):
        launch.finetune(4, "3d_fullres", 0, plans_name="nnUNetPlans", device="cpu")
    (target / "nnUNetPlans_HSSL.json").unlink()
    write_plans(target, "nnUNetPlans", role="corpus")
    with pytest.raises(HSSLError, match=f"{NAME} is a corpus.*has masks"):
        launch.finetune(4, "3d_fullres", 0, device="cpu")
    assert not calls


def test_each_gpu_needs_an_image_of_the_batch(target, calls, monkeypatch):
    monkeypatch.setattr(launch, "check_gpus", lambda *_: None)
    edited(target / "nnUNetPlans_HSSL.json", batch_size=2)
    launch.finetune(4, "3d_fullres", 0, device="cpu", num_gpus=2)
    with pytest.raises(HSSLError, match="-num_gpus 3.*`batch_size` of 2.*Use -num_gpus 2"):
        launch.finetune(4, "3d_fullres", 0, device="cpu", num_gpus=3)
    assert len(calls) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_cpu_is_taken_and_cuda_refused():
    assert device.choose_device(None) == torch.device("cpu")
    with pytest.raises(HSSLError, match="-device cuda"):
        device.choose_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_with_a_gpu_it_is_taken():
    assert device.choose_device(None) == torch.device("cuda")


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
