"""A kill while a checkpoint is saved, or a full disk, leaves the older one as it was, whatever the trainer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_corpus
import torch

from hssl_nnunet.paths import ENV_PREPROCESSED
from hssl_nnunet.plan_schema import TargetBlock, finetuning_plan, load_preset
from hssl_nnunet.typed_json import to_json

NAME = "Dataset007_Target"
# builds the trainer of a class, saves once, and then does as it is told
SAVE = """
import importlib, json, os, signal, sys
from pathlib import Path
import torch
from torch import nn
module, kind, folder, path, then = sys.argv[1:]
plans, dataset_json = (json.loads((Path(folder) / f"{n}.json").read_text()) for n in ("plans", "dataset"))
trainer = getattr(importlib.import_module(module), kind)(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
trainer.network = nn.Linear(1, 1)
trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), lr=0.1)
trainer.current_epoch = 0
trainer.save_checkpoint(path)
trainer.current_epoch = 1
exec(then)
"""
DIE_WHILE_SAVING = """
def cut_off(checkpoint, file):
    file.write(b"half of a checkpoint")
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = cut_off
trainer.save_checkpoint(path)
"""
SAVE_ON_A_FULL_DISK = """
import resource
from hssl_nnunet.errors import HSSLError
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    trainer.save_checkpoint(path)
except HSSLError as error:
    assert f"Cannot write {path}" in str(error)
    os._exit(7)  # without a word in the log, which cannot grow either
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("place", "then", "code"),
    [
        ("vanilla.HSSLVanilla", DIE_WHILE_SAVING, -signal.SIGKILL),
        ("finetuner.HSSLFinetuner", DIE_WHILE_SAVING, -signal.SIGKILL),
        ("vanilla.HSSLVanilla", SAVE_ON_A_FULL_DISK, 7),
    ],
)
def test_what_stops_saving_leaves_the_older_checkpoint(
    place: str, then: str, code: int, nnunet_folders: dict[str, Path], tmp_path: Path
) -> None:
    (nnunet_folders[ENV_PREPROCESSED] / NAME).mkdir()
    entry = tiny_corpus.configuration(tiny_corpus.ARCHITECTURES[0], (16, 16, 16), (1.0, 1.0, 1.0))
    block = TargetBlock(weights=None, weights_sha256=None, finetuning=finetuning_plan(load_preset("cpu")))
    plans = {**tiny_corpus.plans(NAME, entry), "hssl": to_json(block), "continue_training": False}
    dataset_json = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    (tmp_path / "dataset.json").write_text(json.dumps(dataset_json))
    path = tmp_path / "checkpoint_latest.pth"
    module, kind = place.split(".")
    words = [f"hssl_nnunet.training.{module}", kind, str(tmp_path), str(path), then]
    ended = subprocess.run([sys.executable, "-c", SAVE, *words], env=os.environ, stdout=subprocess.DEVNULL)
    assert ended.returncode == code
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint["current_epoch"] == 1 and checkpoint["network_weights"].keys() == {"weight", "bias"}
