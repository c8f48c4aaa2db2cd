"""The optimisers of the plans, and a step: clipped, scaled, skipped when its gradient is broken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hssl_nnunet.training.optimizer import GradientGuard, Stepper, build_optimizer


def test_optimisers_take_the_plans_values() -> None:
    parameter = nn.Parameter(torch.ones(2))
    sgd = build_optimizer("sgd", [([parameter], 0.1)], 3e-5)
    assert isinstance(sgd, torch.optim.SGD)
    assert {k: sgd.defaults[k] for k in ("momentum", "nesterov", "weight_decay")} == {
        "momentum": 0.99,
        "nesterov": True,
        "weight_decay": 3e-5,
    }
    adamw = build_optimizer("adamw", [([parameter], 0.1)], 0.02)
    assert isinstance(adamw, torch.optim.AdamW) and adamw.param_groups[0]["weight_decay"] == 0.02


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_with_a_broken_gradient_leaves_no_trace(kind: Any, broken: float, fused: bool) -> None:
    def trained(gradients: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[str]]:
        one, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        optimizer = build_optimizer(kind, [([one], 0.1), ([other], 0.1)], 0.1)
        for group in (optimizer.defaults, *optimizer.param_groups):
            group["fused"] = fused
        steps = GradientGuard(optimizer, clip=100.0)
        for gradient in gradients:
            one.grad, other.grad = torch.ones(3), gradient
            optimizer.step()
        return [one.detach(), other.detach()], steps.warnings() + steps.warnings()

    good, bad = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, broken, 0.0])
    expected, none = trained([good, 2 * good])
    got, warnings = trained([bad, good, bad, 2 * good, bad])
    assert none == [] and len(warnings) == 1 and "3 steps" in warnings[0]
    assert all((e < 1).all() for e in expected)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=0)


def test_a_parameter_may_have_its_first_gradient_later_than_another() -> None:
    one, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = build_optimizer("sgd", [([one, other], 0.1)], 0.0)
    GradientGuard(optimizer, clip=100.0)
    for step in range(2):
        one.grad, other.grad = torch.ones(3), torch.ones(3) if step else None
        optimizer.step()
    assert other.tolist() == pytest.approx([1 - 0.1 * 1.99] * 3)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip", [0.5, 50.0])
def test_clipping_is_torchs_own(kind: Any, fused: bool, clip: float) -> None:
    def trained(guarded: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]
        optimizer = build_optimizer(kind, [([p], 0.1) for p in parameters], 0.1)
        for group in (optimizer.defaults, *optimizer.param_groups):
            group["fused"] = fused
        if guarded:
            GradientGuard(optimizer, clip)
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            if not guarded:
                nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
        return [p.detach() for p in parameters]

    for guarded, plain in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(guarded, plain)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_clips_the_gradient_and_keeps_its_direction(scaled: bool) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    step = Stepper(optimizer, scaler, clip=1.0)
    step((parameter * torch.tensor([3.0, 4.0])).sum())
    assert parameter.tolist() == pytest.approx([-0.6, -0.8], rel=1e-4)
    optimizer.zero_grad()
    step((parameter * torch.tensor([0.3, torch.inf])).sum())
    assert parameter.tolist() == pytest.approx([-0.6, -0.8], rel=1e-4) and step.guard.warnings()


def test_momentum_lies_in_memory_as_the_network_does_that_is_trained() -> None:
    network = nn.Conv3d(2, 3, 3)
    optimizer = build_optimizer("sgd", [(list(network.parameters()), 0.1)], 0.0)
    step = Stepper(optimizer, None, clip=1.0)
    network.to(memory_format=torch.channels_last_3d)  # as nnU-Net's order has it: the optimiser is built before
    step(network(torch.ones(1, 2, 4, 4, 4)).sum())
    buffer = optimizer.state[network.weight]["momentum_buffer"]
    assert buffer.stride() == network.weight.stride()
    torch.testing.assert_close(buffer, network.weight.grad)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_run_goes_on_in_another_memory_format(kind: Any) -> None:
    """On another device, or compiled, kernels lie otherwise in memory than when the state was saved."""

    def started(memory_format: torch.memory_format) -> tuple[nn.Conv3d, Stepper]:
        torch.manual_seed(0)
        network = nn.Conv3d(2, 3, 3)
        network.to(memory_format=memory_format)
        return network, Stepper(build_optimizer(kind, [(list(network.parameters()), 0.1)], 0.01), None, clip=1.0)

    def train(network: nn.Conv3d, step: Stepper, seeds: range) -> None:
        for seed in seeds:
            network.zero_grad()
            step(network(torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(seed))).square().mean())

    whole, step = started(torch.contiguous_format)
    train(whole, step, range(6))
    first, saved = started(torch.contiguous_format)
    train(first, saved, range(3))
    resumed, step = started(torch.channels_last_3d)
    resumed.load_state_dict(first.state_dict())
    step.optimizer.load_state_dict(saved.optimizer.state_dict())
    train(resumed, step, range(3, 6))
    torch.testing.assert_close(resumed.weight, whole.weight)
