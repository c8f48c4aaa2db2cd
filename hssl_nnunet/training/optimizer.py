"""A step of the optimiser, without waiting for the GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NORM_EPS = 1e-6  # as torch's clip_grad_norm_ has it
STEPS_AHEAD = 2  # steps whose kernels may wait for the GPU; more only hold memory


def build_optimizer(
    kind: Literal["adamw", "sgd"], groups: Sequence[tuple[list[nn.Parameter], float]], weight_decay: float
) -> Optimizer:
    """AdamW, or nnU-Net's SGD (Nesterov, momentum 0.99), with fused kernels where torch has them.

    Args:
        kind: which optimiser.
        groups: parameters, and their peak learning rate.
        weight_decay: weight decay of all.
    """
    parameters: list[dict[str, Any]] = [{"params": group, "lr": peak} for group, peak in groups]
    fused = all(p.device.type in ("cuda", "cpu") for group, _ in groups for p in group)
    optimizer: Optimizer
    if kind == "adamw":
        optimizer = torch.optim.AdamW(parameters, weight_decay=weight_decay, fused=fused)
    else:
        optimizer = torch.optim.SGD(parameters, momentum=0.99, nesterov=True, weight_decay=weight_decay, fused=fused)
    optimizer.register_load_state_dict_post_hook(_lay_as_parameters)
    return optimizer


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Resume an optimiser's state; its own hyper-parameters stay: they are the plan's, which may have been edited."""
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)


def _lay_as_parameters(optimizer: Optimizer) -> None:
    """Put a resumed state into the parameters' memory format, which may be another than when it was saved.

    Torch keeps the saved one, and its fused kernels pair elements by their place in memory: on a CPU a run that goes on
    with another device, or compiled, would silently mix up the state of different weights.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class GradientGuard:
    """Clips the gradient to a norm, and skips and counts the steps whose gradient is not finite.

    One such step would make every weight nan. The fused kernels divide by a scale and look at a flag on their own
    device: the gradient is read once more, for its norm, and nothing waits for a GPU.
    """

    def __init__(self, optimizer: Optimizer, clip: float):
        """Watch over the steps of an optimiser.

        Args:
            optimizer: of `build_optimizer`.
            clip: largest norm of the gradient of all its parameters.
        """
        self.clip = clip
        self._count: Tensor | None = None
        optimizer.register_step_pre_hook(self._look)

    def _look(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        if isinstance(optimizer, torch.optim.SGD):
            _start_momentum(optimizer, parameters)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        broken = ~norm.isfinite()
        self._count = broken.long() if self._count is None else self._count + broken
        if optimizer.defaults["fused"]:  # by torch's own names, of its GradScaler
            optimizer.found_inf = broken.float()  # type: ignore[attr-defined]
            optimizer.grad_scale = ((norm + NORM_EPS) / self.clip).clamp(min=1)  # type: ignore[attr-defined]
        elif broken:
            for parameter in parameters:
                parameter.grad = None  # an optimiser leaves a parameter without gradient as it is
        else:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)

    def warnings(self) -> list[str]:
        """What to tell the user of the steps since the last call; waits for the device."""
        count, self._count = int(self._count or 0), None
        return [f"WARNING: {count} steps were skipped: their gradient was not finite"] if count else []


def _start_momentum(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Momentum 0, with which the first step is torch's own.

    Torch's fused step would make it out of whatever memory holds when the first step is skipped, and it fails where
    some parameters have their first gradient later than others. Not before the first step: until then the network's
    memory format may change.
    """
    for parameter in parameters:
        if optimizer.state[parameter].get("momentum_buffer") is None:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class Stepper:
    """Backward pass, clipping and step, of pretraining and fine-tuning alike.

    It does not wait for its own result, so that Python prepares the next batch while the GPU works on this one; it
    waits for the step before the last two.
    """

    def __init__(self, optimizer: Optimizer, scaler: torch.amp.GradScaler | None, clip: float):
        """Bind what does not change between steps.

        Args:
            optimizer: of `build_optimizer`.
            scaler: the loss scaler of fp16, or None.
            clip: largest norm of the gradient.
        """
        self.optimizer, self.scaler = optimizer, scaler
        self.guard = GradientGuard(optimizer, clip)
        self._ahead: deque[torch.cuda.Event] = deque()

    def __call__(self, loss: Tensor) -> None:
        """Take the step of a loss; gradients must be None before."""
        if self.scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        else:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.unscale_(self.optimizer)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if loss.device.type == "cuda":
            self._pace()

    def _pace(self) -> None:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._ahead.append(event)
        if len(self._ahead) > STEPS_AHEAD:
            self._ahead.popleft().synchronize()
