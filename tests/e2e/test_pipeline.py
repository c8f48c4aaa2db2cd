"""The whole way through the command line, in processes of its own: MSD folders to a prediction by stock nnU-Net."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from hssl_nnunet.transfer.export import load_checkpoint
from hssl_nnunet.transfer.weights_file import read_metadata

BIN = Path(sys.executable).parent
PLANS = "nnUNetCPUPlans"
# array shape (z, y, x) and spacing of SimpleITK (x, y, z)
TASKS = {61: ("Ball", (20, 22, 24), (1.0, 1.0, 1.0)), 62: ("Slab", (10, 32, 32), (1.0, 1.0, 4.0))}
PRETRAINING = {
    "num_iterations_per_epoch": 1,
    "num_val_iterations_per_epoch": 1,
    "save_every": 1,
    "warmup_epochs": 0,
    "chunks_per_step": 1,
    "images_per_chunk": 2,
    "embedding_width": 8,
    "projection_width": 4,
    "probe_every": 1000,
}
FINETUNING = {
    "num_epochs": 1,
    "num_iterations_per_epoch": 1,
    "num_val_iterations_per_epoch": 1,
    "warmup_epochs": 0,
    "seed": 0,
}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]


def write_task(folder: Path, shape: tuple[int, int, int], spacing: tuple[float, ...]) -> None:
    """Four cases with a mask and one without, each a bright ellipsoid in noise."""
    grid = np.indices(shape).astype(np.float32)
    for index in range(5):
        rng = np.random.default_rng(index)
        centre = np.array(shape)[:, None, None, None] * rng.uniform(0.4, 0.6, (3, 1, 1, 1))
        mask = (((grid - centre) / (np.array(shape)[:, None, None, None] / 4)) ** 2).sum(0) < 1
        parts = {"imagesTr" if index < 4 else "imagesTs": rng.normal(100, 10, shape) + 40 * mask}
        if index < 4:
            parts["labelsTr"] = mask.astype(np.uint8)
        for sub, array in parts.items():
            (folder / sub).mkdir(parents=True, exist_ok=True)
            image = sitk.GetImageFromArray(array.astype(np.uint8 if sub == "labelsTr" else np.float32))
            image.SetSpacing(spacing)
            sitk.WriteImage(image, str(folder / sub / f"case_{index}.nii.gz"))
    content = {
        "name": folder.name,
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "blob"},
        "numTraining": 4,
        "training": [],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(content))


def edit(path: Path, section: str, values: dict[str, Any]) -> None:
    """Change plan values, as a user does with an editor."""
    plans = json.loads(path.read_text())
    assert values.keys() <= plans["hssl"][section].keys()
    plans["hssl"][section].update(values)
    path.write_text(json.dumps(plans))


@pytest.fixture
def environment(nnunet_folders: dict[str, Path]) -> dict[str, str]:
    """nnU-Net's folders, one thread and one worker."""
    names = ("OMP_NUM_THREADS", "nnUNet_def_n_proc", "nnUNet_n_proc_DA")
    return os.environ | {variable: str(path) for variable, path in nnunet_folders.items()} | dict.fromkeys(names, "1")


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """Runs a command, checks its exit code, returns all it said."""

    def call(command: str, *args: str | int | Path, code: int = 0, **variables: str) -> str:
        words = [str(BIN / command), *map(str, args)]
        result = subprocess.run(
            words, env=environment | variables, cwd=tmp_path, timeout=300, text=True, capture_output=True, check=False
        )
        said = result.stdout + result.stderr
        assert result.returncode == code, f"{words}\n{said[-4000:]}"
        return said

    return call


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
    run("hssl", "corpus", "-d", *TASKS, "-o", 900, "-n", "E2E", "-p", PLANS, "-np", 1)

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
