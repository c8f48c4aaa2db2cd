"""The whole way through the command line, in processes of its own: MSD folders to a prediction by stock nnU-Net."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
from tiny_tasks import FINETUNING, PLANS, PRETRAINING, TASKS, write_task

from hssl_nnunet.transfer.checkpoints import load_checkpoint
from hssl_nnunet.transfer.weights_file import read_metadata

BIN = Path(sys.executable).parent
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]


def edit(path: Path, section: str, values: dict[str, Any]) -> None:
    """Change plan values, as a user does with an editor."""
    plans = json.loads(path.read_text())
    assert values.keys() <= plans["hssl"][section].keys()
    plans["hssl"][section].update(values)
    path.write_text(json.dumps(plans))


def interrupted_pretraining(environment: dict[str, str], checkpoint: Path) -> str:
    """Start a long pretraining, send Ctrl-C after its first checkpoint; returns what it said on stderr."""
    command = [str(BIN / "hssl"), "pretrain", "900", "-device", "cpu"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    limit = time.monotonic() + 200
    while not checkpoint.is_file() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    return said


def test_from_msd_folders_to_a_stock_prediction(
    run: Callable[..., str], environment: dict[str, str], nnunet_folders: dict[str, Path], tmp_path: Path
) -> None:
    raw, preprocessed, results = (nnunet_folders[f"nnUNet_{n}"] for n in ("raw", "preprocessed", "results"))
    for number, (name, shape, spacing) in TASKS.items():
        write_task(tmp_path / f"Task{number}_{name}", shape, spacing)
        run("hssl", "convert_msd", "-i", tmp_path / f"Task{number}_{name}")
    said = run("hssl", "plan_and_preprocess", "-d", *TASKS, "--preset", "cpu", "-np", 1)
    assert "Dataset061_Ball: 4 with masks, 1 without, 0 quarantined" in said
    assert "Next: hssl pretrain 900" in run("hssl", "corpus", "-d", *TASKS, "-o", 900, "-n", "E2E", "-p", PLANS)

    # pretrain, stop, try to start anew, resume
    corpus_plans = preprocessed / "Dataset900_E2E" / f"{PLANS}.json"
    edit(corpus_plans, "pretraining", {**PRETRAINING, "num_epochs": 1000})
    folder = results / "Dataset900_E2E" / f"nnUNetTrainerHSSLPretrain__{PLANS}__3d_fullres" / "fold_all"
    assert "--c" in interrupted_pretraining(environment, folder / "checkpoint_latest.pth")
    assert "already holds a training" in run("hssl", "pretrain", 900, "-device", "cpu", code=1)
    done = load_checkpoint(folder / "checkpoint_latest.pth")["current_epoch"]
    edit(corpus_plans, "pretraining", {"num_epochs": done + 2, "probe_every": 1})
    assert "hssl seed" in run("hssl", "pretrain", 900, "-device", "cpu", "--c")
    weights = folder / "hssl.safetensors"
    metadata = read_metadata(weights)
    assert metadata.epochs_done == done + 2 == len(metadata.curves["train_losses"])
    assert len(metadata.images) == 10 and {i.dataset_name for i in metadata.images} == {
        "Dataset061_Ball",
        "Dataset062_Slab",
    }

    # seed, fine-tune with and without the weights
    assert "transductive" in run("hssl", "seed", "-d", 61, "-w", weights, "-p", PLANS)
    target = preprocessed / "Dataset061_Ball"
    edit(target / f"{PLANS}_HSSL.json", "finetuning", FINETUNING)
    split = {"train": ["case_0", "case_1", "case_2"], "val": ["case_3"]}
    (target / "splits_final.json").write_text(json.dumps([split]))
    run("hssl", "finetune", 61, "3d_fullres", 0, "-device", "cpu")
    run("hssl", "finetune", 61, "3d_fullres", 0, "-device", "cpu", "--scratch")
    models = results / "Dataset061_Ball"
    for trainer in ("nnUNetTrainerHSSLFinetune", "nnUNetTrainerHSSLScratch"):
        fold = models / f"{trainer}__{PLANS}_HSSL__3d_fullres" / "fold_0"
        assert (fold / "validation" / "summary.json").is_file()
        assert (fold / "transfer.json").is_file() == (trainer == "nnUNetTrainerHSSLFinetune")
    run("hssl", "finetune", 61, "3d_fullres", 0, "-device", "cpu", "--scratch", "--val", "--npz")
    assert (fold / "validation" / "case_3.npz").is_file()

    # a model that nnU-Net runs without our trainers
    run("hssl", "export", "-d", 61, "-o", tmp_path / "model", "-f", 0)
    (model,) = (tmp_path / "model" / "Dataset061_Ball").glob("nnUNetTrainer__*__3d_fullres")
    _, plans_name, configuration = model.name.split("__")
    images, output = raw / "Dataset061_Ball" / "imagesTs", tmp_path / "predicted"
    arguments = ("-d", 61, "-c", configuration, "-p", plans_name, "-tr", "nnUNetTrainer", "-f", 0, "-i", images)
    options = ("-o", output, "-device", "cpu", "--disable_tta", "-npp", 1, "-nps", 1)
    run("nnUNetv2_predict", *arguments, *options, nnUNet_results=str(tmp_path / "model"), nnUNet_extTrainer="")
    (prediction,) = output.glob("*.nii.gz")
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(prediction))).shape == TASKS[61][1]
