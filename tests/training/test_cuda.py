"""Pretraining on a GPU: the same losses and gradients as on the CPU, compiled or not, and a whole run in bf16."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_corpus
import torch
from tiny_corpus import batch_of_all_domains, started

from hssl_nnunet.training.optimizer import Stepper, build_optimizer
from hssl_nnunet.transfer.weights_file import load_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
STILL = {"views": {"intensity": 0.0}}  # the noise's field is drawn on the device


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions and products in float32 proper, nothing compiled unless a test asks for it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setenv("nnUNet_compile", "f")


@pytest.mark.parametrize(
    ("compiled", "checkpointing"), [("f", "none"), ("f", "chunk"), ("f", "image"), ("t", "none"), ("t", "chunk")]
)
def test_losses_and_gradients_are_the_cpus(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, compiled: str, checkpointing: str
) -> None:
    here = started(corpus, STILL)
    monkeypatch.setenv("nnUNet_compile", compiled)
    there = started(corpus, {**STILL, "checkpointing": checkpointing}, "cuda")
    batch, terms = batch_of_all_domains(here), []
    for trainer in (here, there):
        terms.append(trainer.terms(batch))
        terms[-1]["total"].backward()
    assert terms[0].keys() == terms[1].keys()
    for name, value in terms[0].items():
        assert terms[1][name].item() == pytest.approx(value.item(), rel=1e-3), name
    for (name, p), q in zip(here.model.named_parameters(), there.model.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            off = (q.grad.cpu() - p.grad).norm() / p.grad.norm().clamp(min=1e-4)
            assert off < 1e-2, name


@pytest.mark.parametrize("compiled", ["f", "t"])
def test_a_whole_run_in_bf16_learns_probes_and_writes_weights(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, compiled: str
) -> None:
    monkeypatch.setenv("nnUNet_compile", compiled)
    trainer = tiny_corpus.pretrainer(
        corpus,
        {"precision": "auto", "num_workers": 2, "cache_gib": 0.1, "loss": {"queue_per_domain": 4, "voxel": 0.5}},
        "cuda",
    )
    trainer.run_training()
    folder = Path(trainer.output_folder)
    tensors, metadata = load_weights(folder / "hssl.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert np.isfinite(metadata.curves["train_losses"]).all()
    assert np.isfinite(metadata.curves["domain_accuracy"][-1])
    for name in ("progress.png", "embeddings.png", "reconstructions.png"):
        assert (folder / name).is_file()


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_both_optimisers_step_a_network_whose_memory_format_changed(kind: Any) -> None:
    network = torch.nn.Conv3d(2, 3, 3).cuda()
    before = network.weight.detach().clone()
    step = Stepper(build_optimizer(kind, [(list(network.parameters()), 0.1)], 0.0), None, clip=1.0)
    network.to(memory_format=torch.channels_last_3d)
    for _ in range(4):  # more than may be ahead of the GPU
        network.zero_grad()
        step(network(torch.ones(1, 2, 4, 4, 4, device="cuda")).sum())
    assert network.weight.isfinite().all() and not torch.equal(network.weight, before)


@pytest.mark.parametrize("queue", [0, 4])
def test_a_step_waits_for_nothing_on_the_gpu(corpus: Path, queue: int) -> None:
    changes = {"precision": "auto", "views": {"intensity": 1.0}, "loss": {"queue_per_domain": queue, "voxel": 0.5}}
    trainer = started(corpus, changes, "cuda")
    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        terms = trainer.train_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value.is_cuda and value.isfinite() for value in terms.values())


def test_chunks_are_read_into_page_locked_memory(corpus: Path) -> None:
    trainer = started(corpus, {"num_workers": 2}, "cuda")
    assert all(raw.source.is_pinned() for raw in next(trainer.dataloader_train))


def test_one_process_under_torchrun_speaks_nccl(corpus: Path) -> None:
    hssl = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "-m", "hssl_nnunet"]
    done = subprocess.run(
        [*hssl, "pretrain", "900", "-device", "cuda"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
