"""Stock nnU-Net at the length of a fine-tuning run: the benchmark's baseline, and what fine-tuning builds on."""

from __future__ import annotations

from typing import Any

import torch

from hssl_nnunet.plan_schema import target_block
from hssl_nnunet.plan_values import FinetuningPlan
from hssl_nnunet.training.full_validation import validate_fully
from hssl_nnunet.training.trainer import PlannedTrainer


class HSSLVanilla(PlannedTrainer):
    """Stock nnU-Net in everything but its length, which the `hssl` block of the plans gives.

    Optimiser, learning rate, polynomial schedule, precision and start are nnU-Net's own, so that at equal iterations
    every other arm is compared with what a user of nnU-Net has today.
    """

    plan: FinetuningPlan

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ):
        """Take the length from the `hssl` block of the plans.

        Raises:
            HSSLError: the plans have no such block, or it is wrong.
        """
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.block = target_block(self.plans_manager.plans, f"{self.plans_manager.plans_name}.json")
        self.plan = self.block.finetuning
        self.take_length(self.plan)

    def initialize(self) -> None:
        """Build everything as nnU-Net does, from the plan's seed where it has one."""
        if self.plan.seed is not None:
            torch.manual_seed(self.plan.seed)
        super().initialize()

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """nnU-Net's augmentation; mirroring of predictions as the plan has it."""
        configured = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.plan.use_mirroring:
            self.inference_allowed_mirroring_axes = None
        return configured  # type: ignore[no-any-return]

    def on_epoch_end(self) -> None:
        """nnU-Net's end of an epoch, after a look at whole validation cases where the plan asks for one."""
        if self.plan.looks_at(self.current_epoch):
            self.validate_whole_cases()
        super().on_epoch_end()

    def validate_whole_cases(self) -> None:
        """Predict whole validation cases and log their Dice, as the test will: see `full_validation`."""
        validate_fully(self)
