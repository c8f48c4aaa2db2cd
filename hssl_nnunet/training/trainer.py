"""What our trainers share beside nnU-Net's loop: the plan's length, whole checkpoints, and going on from one."""

from __future__ import annotations

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from hssl_nnunet.files import written_whole
from hssl_nnunet.plan_values import FinetuningPlan, PretrainingPlan
from hssl_nnunet.training.optimizer import load_optimizer
from hssl_nnunet.training.resume import changed_values, plan_of


class PlannedTrainer(nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's trainer with the length that a plan gives."""

    plan: PretrainingPlan | FinetuningPlan
    current_epoch: int
    _best_ema: float | None  # nnU-Net's name

    def take_length(self, plan: PretrainingPlan | FinetuningPlan) -> None:
        """Train as many epochs and iterations as the plan says, and save as often."""
        self.num_epochs, self.save_every = plan.num_epochs, plan.save_every
        self.num_iterations_per_epoch = plan.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = plan.num_val_iterations_per_epoch

    def save_checkpoint(self, filename: str) -> None:
        """Save nnU-Net's checkpoint, whole or not at all: a run that was killed goes on from the older one.

        Its plans name the weights that it began with, if there are any, and their hash.

        Raises:
            HSSLError: the disk is full, or the folder cannot be written.
        """
        if self.local_rank == 0 and not self.disable_checkpointing:
            # through a file object, so that a full disk is an OSError and not an internal error of torch
            with written_whole(filename) as temporary, temporary.open("wb") as file:
                super().save_checkpoint(file)

    def go_on_from(self, checkpoint: dict[str, Any], path: str, network: nn.Module) -> None:
        """Take up weights, optimiser, scaler, log and epoch; the plan's values are those of now, and said if changed.

        Where no step is left, as in a validation, the plan may name another optimiser: the checkpoint's is left out.

        Args:
            checkpoint: content of `path`.
            path: the checkpoint's file.
            network: whose weights it holds.

        Raises:
            HSSLError: it holds another network or optimiser.
        """
        trains = checkpoint["current_epoch"] < self.num_epochs
        if changed := changed_values(checkpoint, path, self.plan, network.state_dict(), trains=trains):
            self.print_to_log_file(f"WARNING: goes on with other values: {'; '.join(changed)}")
        network.load_state_dict(checkpoint["network_weights"])
        if plan_of(checkpoint, path, self.plan).optimizer == self.plan.optimizer:
            load_optimizer(self.optimizer, checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.logger.load_checkpoint(checkpoint["logging"])
        self.current_epoch, self._best_ema = checkpoint["current_epoch"], checkpoint["_best_ema"]
