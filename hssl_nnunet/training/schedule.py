"""Learning rates, set once an epoch as nnU-Net does."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch.optim import Optimizer

from hssl_nnunet.plan_values import FinetuningPlan

Multiplier = Callable[[int], float]
POLY_EXPONENT = 0.9  # nnU-Net's


def warmup_poly(epoch: int, *, start: int, warmup: int, end: int) -> float:
    """Share of the peak learning rate: linear over `warmup` epochs from `start`, then nnU-Net's polynomial until `end`.

    Returns:
        0 before `start`; 1 at the end of the warm-up; near 0 at the last epoch.
    """
    if epoch < start:
        return 0.0
    if epoch < start + warmup:
        return (epoch - start + 1) / (warmup + 1)
    return float((1 - (epoch - start - warmup) / max(1, end - start - warmup)) ** POLY_EXPONENT)


def finetuning_multipliers(plan: FinetuningPlan) -> tuple[Multiplier, Multiplier]:
    """Shares of the peak learning rate of the decoder and of the encoder, by epoch.

    `stock` is nnU-Net's polynomial; `warmup` puts a linear warm-up before it; `sawtooth` trains the decoder alone for
    `decoder_epochs`, then all, each phase with its own warm-up (the encoder's learning rate is 0 in the first).
    """
    end, decoder_end = plan.num_epochs, plan.decoder_epochs

    def whole(epoch: int) -> float:
        warmup = 0 if plan.schedule == "stock" else plan.warmup_epochs
        return warmup_poly(epoch, start=0, warmup=warmup, end=end)

    def second_phase(epoch: int) -> float:
        return warmup_poly(epoch, start=decoder_end, warmup=plan.warmup_epochs, end=end)

    def both_phases(epoch: int) -> float:
        if epoch >= decoder_end:
            return second_phase(epoch)
        return warmup_poly(epoch, start=0, warmup=min(plan.warmup_epochs, decoder_end), end=decoder_end)

    return (both_phases, second_phase) if plan.schedule == "sawtooth" else (whole, whole)


class EpochSchedule:
    """Sets the learning rate of each parameter group; the state is the epoch alone, so a resumed run needs no more."""

    def __init__(self, optimizer: Optimizer, multipliers: Iterable[Multiplier]):
        self.optimizer = optimizer
        self.multipliers = list(multipliers)
        self.peaks = [group["lr"] for group in optimizer.param_groups]

    def step(self, epoch: int) -> None:
        """Set the learning rates of this epoch."""
        for group, multiplier, peak in zip(self.optimizer.param_groups, self.multipliers, self.peaks, strict=True):
            group["lr"] = peak * multiplier(epoch)
