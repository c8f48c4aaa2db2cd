"""Real processes: two that share the chunks of each step must train as one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny_corpus
import torch
import torch.distributed as dist

from hssl_nnunet.training.distributed import mean_over_ranks, rank_and_world

PROCESSES, EPOCHS = 2, 2
# not AdamW: a bias before an instance norm has no gradient but rounding, which AdamW would blow up to a whole step
PLAN = {
    "num_epochs": EPOCHS,
    "chunks_per_step": 4,
    "probe_every": 1,
    "optimizer": "sgd",
    "initial_lr": 0.02,
    "loss": {"voxel": 0.5},
}


def test_one_process_is_rank_0_of_1() -> None:
    assert rank_and_world() == (0, 1)
    assert mean_over_ranks({"a": 2.0}, torch.device("cpu")) == {"a": 2.0}


def train(corpus: str) -> dict[str, object]:
    """A whole run; the weights and the log at its end."""
    trainer = tiny_corpus.pretrainer(Path(corpus), PLAN)
    trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging
    return {
        "device": str(trainer.device),
        "weights": trainer.model.state_dict(),
        "log": {k: v for k, v in log.items() if k.startswith(("train_", "val_", "lrs"))},
    }


def process(rank: int, corpus: str, folder: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    values = mean_over_ranks({"a": float(rank), "b": 3.0}, torch.device("cpu"))
    torch.save({**train(corpus), "means": values, "rank": rank_and_world()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {rank: str(tmp_path / f"results_{rank}") for rank in range(PROCESSES)}
    environment = {k: os.environ[k] for k in ("nnUNet_raw", "nnUNet_preprocessed")}
    environment["nnUNet_results"] = results[0]
    torch.multiprocessing.spawn(process, (str(corpus), str(tmp_path), environment), nprocs=PROCESSES)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]
    assert [r["rank"] for r in ranks] == [(0, 2), (1, 2)]
    assert all(r["means"] == {"a": 0.5, "b": 3.0} and r["device"] == "cpu" for r in ranks)
    alone = train(str(corpus))
    start = tiny_corpus.pretrainer(corpus, PLAN)
    start.initialize()
    moved = [(start.model.state_dict()[name] - end).abs().max() for name, end in alone["weights"].items()]
    assert sum(distance > 1e-3 for distance in moved) > len(moved) / 2  # far beyond the tolerance below
    for result in ranks:
        torch.testing.assert_close(result["weights"], alone["weights"], rtol=0, atol=1e-5)
        assert result["log"].keys() == alone["log"].keys()
        for key, values in alone["log"].items():
            assert result["log"][key] == pytest.approx(values, rel=1e-4), key
    written = sorted(p.name for p in (Path(results[0]) / tiny_corpus.CORPUS).rglob("*.safetensors"))
    assert written == ["hssl.safetensors"]
