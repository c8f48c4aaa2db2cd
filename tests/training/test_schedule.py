from __future__ import annotations

from typing import Any

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn

from hssl_nnunet.plan_schema import finetuning_plan, load_preset
from hssl_nnunet.plan_values import FinetuningPlan
from hssl_nnunet.training.optimizer import build_optimizer
from hssl_nnunet.training.schedule import EpochSchedule, finetuning_multipliers, warmup_poly


def plan(**overrides: Any) -> FinetuningPlan:
    return finetuning_plan(
        load_preset("default"), **{"num_epochs": 20, "warmup_epochs": 3, "decoder_epochs": 8, **overrides}
    )


def rates(overrides: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Multipliers of decoder and encoder over all epochs."""
    values = plan(**overrides)
    decoder, encoder = finetuning_multipliers(values)
    epochs = range(values.num_epochs)
    return [decoder(e) for e in epochs], [encoder(e) for e in epochs]


def test_warmup_poly_by_hand() -> None:
    values = [warmup_poly(e, start=2, warmup=3, end=9) for e in range(10)]
    decay = [1.0, 0.75**0.9, 0.5**0.9, 0.25**0.9, 0.0]  # epochs 5 to 9
    assert values == pytest.approx([0, 0, 0.25, 0.5, 0.75, *decay])


def test_warmup_longer_than_the_run_only_rises() -> None:
    values = [warmup_poly(e, start=0, warmup=50, end=5) for e in range(5)]
    assert values == sorted(values) and 0 < values[0] and values[-1] < 1


def test_stock_is_nnunets_polynomial() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.01)
    theirs = PolyLRScheduler(optimizer, 0.01, 20)
    decoder, encoder = rates({"schedule": "stock"})
    assert decoder == encoder
    for epoch, multiplier in enumerate(decoder):
        theirs.step(epoch)
        assert 0.01 * multiplier == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_warmup_rises_to_the_peak_then_falls_for_both_halves() -> None:
    decoder, encoder = rates({"schedule": "warmup"})
    assert decoder == encoder and decoder[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert all(0 < later < earlier for earlier, later in zip(decoder[3:], decoder[4:], strict=False))


def test_sawtooth_trains_the_decoder_first_and_warms_up_twice() -> None:
    decoder, encoder = rates({"schedule": "sawtooth"})
    assert encoder[:8] == [0.0] * 8 and min(encoder[8:]) > 0
    assert decoder[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0]) and decoder[4] < 1
    assert decoder[8:12] == encoder[8:12] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert decoder[8:] == encoder[8:] and decoder[7] < decoder[4]
    assert max(decoder) == 1 and decoder[-1] < 0.2


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_resumed_schedule_keeps_its_peaks(kind: Any) -> None:
    def made() -> tuple[torch.optim.Optimizer, EpochSchedule]:
        groups = [([nn.Parameter(torch.ones(2))], 0.5), ([nn.Parameter(torch.ones(3))], 0.25)]
        optimizer = build_optimizer(kind, groups, 0.01)
        return optimizer, EpochSchedule(optimizer, finetuning_multipliers(plan(schedule="sawtooth")))

    first, first_schedule = made()
    first_schedule.step(7)
    assert [g["lr"] for g in first.param_groups][1] == 0
    resumed, schedule = made()
    resumed.load_state_dict(first.state_dict())
    for epoch in (8, 11, 19):
        schedule.step(epoch)
        first_schedule.step(epoch)
        assert [g["lr"] for g in resumed.param_groups] == [g["lr"] for g in first.param_groups]
    schedule.step(11)
    assert [g["lr"] for g in resumed.param_groups] == [0.5, 0.25]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_learning_rate_of_0_changes_nothing(kind: Any) -> None:
    frozen, free = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(kind, [([free], 0.1), ([frozen], 0.1)], 0.1)
    EpochSchedule(optimizer, finetuning_multipliers(plan(schedule="sawtooth"))).step(3)
    for _ in range(3):
        optimizer.zero_grad()
        (frozen.sum() + free.sum()).backward()
        optimizer.step()
    assert torch.equal(frozen, torch.ones(3)) and not torch.equal(free, torch.ones(3))
