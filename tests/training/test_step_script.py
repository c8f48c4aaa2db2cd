"""The script that measures a pretraining step runs on any corpus, and counts all of the step's parts."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_corpus

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pretraining_step.py"


def measured(out: Path) -> dict:
    """What the script writes about one domain, and about all."""
    words = [SCRIPT, tiny_corpus.CORPUS, "-p", tiny_corpus.PLANS_NAME, "--steps", 2, "--domains", tiny_corpus.SLAB]
    command = [sys.executable, *map(str, words), "--threads", "1", "--out", str(out)]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


def test_every_part_of_a_step_is_timed(corpus: Path, tmp_path: Path) -> None:
    found = measured(tmp_path / "step.json")
    domain = found["domains"][tiny_corpus.NAMES[tiny_corpus.SLAB]]
    for part in ("views", "step", "pure_network", "projection", "heads", "reconstruction", "optimizer"):
        assert len(domain[f"{part}_s"]) == 2 and min(domain[f"{part}_s"]) > 0
    assert 0 < domain["projection_share"] < 1  # Slab has flat kernels: shared weights are brought to it
    assert len(found["all_domains"]["heads_s"]) == 2


def test_places_are_counted_among_the_heads(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    script = importlib.import_module(SCRIPT.stem)
    trainer = tiny_corpus.started(corpus)
    raw = script.first_images(trainer, tiny_corpus.SLAB)
    run = script.heads(trainer, [raw], [trainer.preparer.chunk(raw)])
    asked = []
    trainer.model.voxel_embedding.register_full_backward_pre_hook(lambda *_: asked.append("backward"))
    run()
    assert asked == ["backward"]
    assert all(p.grad is None for p in trainer.model.parameters())  # a further run does not add to what is left
