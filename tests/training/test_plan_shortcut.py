"""`benchmarks/plan_shortcut.py` tells a network that looks at the plan from one that looks at the image."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import tiny_corpus
import torch

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def test_a_head_that_reads_the_plan_is_told_from_one_that_reads_the_image(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    script, trainer = importlib.import_module("plan_shortcut"), tiny_corpus.started(corpus)
    domains = len(trainer.corpus.domains)
    monkeypatch.setattr(trainer.model, "task_head", torch.nn.Identity())
    seen: dict[int, Any] = {}

    def by_plan(plan: int, images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return torch.eye(domains)[[plan] * len(images)]

    def by_image(plan: int, images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return torch.eye(domains)[[seen.get(id(images), 0)] * len(images)]

    crops = script.crops

    def remembered(trainer: Any, domain: int, plan: int) -> torch.Tensor:
        images = crops(trainer, domain, plan)
        assert images.shape[2:] == trainer.geometries[plan].crop_size
        seen[id(images)] = domain
        kept.append(images)
        return images

    kept: list[torch.Tensor] = []
    monkeypatch.setattr(script, "crops", remembered)
    monkeypatch.setattr(trainer.model, "embed", by_plan)
    assert script.shortcut(trainer.model, trainer) == {
        "noise_called_as_its_plan": 1,
        "image_in_its_plan_called_rightly": 1,
        "image_in_another_plan_called_as_the_plan": 1,
        "image_in_another_plan_called_rightly": 0,
        "noise_by_plan": [1] * domains,
    }
    monkeypatch.setattr(trainer.model, "embed", by_image)
    found = script.shortcut(trainer.model, trainer)
    assert found["image_in_another_plan_called_rightly"] == 1 == found["image_in_its_plan_called_rightly"]
    assert found["image_in_another_plan_called_as_the_plan"] == 0 and found["noise_by_plan"][1:] == [0] * (domains - 1)
