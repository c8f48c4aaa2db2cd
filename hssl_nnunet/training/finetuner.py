"""Fine-tuning of one target: nnU-Net's own training, with another start, schedule and precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import write_json
from hssl_nnunet.networks.cpu_operators import use_cpu_operators
from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.remedies import seed_command
from hssl_nnunet.training import precision
from hssl_nnunet.training.head_start import HeadFit
from hssl_nnunet.training.memory import keep_freed_memory
from hssl_nnunet.training.optimizer import Stepper, build_optimizer
from hssl_nnunet.training.resume import check_weights
from hssl_nnunet.training.schedule import EpochSchedule, finetuning_multipliers
from hssl_nnunet.training.vanilla import HSSLVanilla
from hssl_nnunet.transfer.checkpoints import load_checkpoint
from hssl_nnunet.transfer.leakage import leakage_notes
from hssl_nnunet.transfer.report import TransferReport
from hssl_nnunet.transfer.seeding import load_into
from hssl_nnunet.transfer.weights_file import file_sha256, load_weights

HEAD_BATCHES, MOST_HEAD_BATCHES = 10, 50
GRADIENT_CLIP = 12.0  # nnU-Net's


class HSSLFinetuner(HSSLVanilla):
    """Fine-tunes the stock network of the plans from pretrained weights.

    Batch size, deep supervision, augmentation and data stay nnU-Net's; start, schedule, optimiser and precision are
    plan values.

    Attributes:
        seeded: whether training starts from the weights file that the plans name.
        compiled: whether nnU-Net compiles the network; known once it is initialised.
        seed: the plan's, or one that was drawn.
    """

    seeded = True
    compiled: bool
    seed: int

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ):
        """Take the hyper-parameters from the `hssl` block of the plans.

        Raises:
            HSSLError: the plans have no such block, or it is wrong.
        """
        super().__init__(plans, configuration, fold, dataset_json, device)
        if device.type == "cpu":
            self.device = device  # under DDP nnU-Net takes for granted that there is a GPU
            keep_freed_memory()
        self.initial_lr = self.plan.initial_lr if self.seeded else self.plan.scratch_lr
        self.weight_decay = self.plan.weight_decay
        self.grad_scaler = precision.grad_scaler(self.plan.precision, self.device)

    # ---------------------------------------------------------------- start

    def initialize(self) -> None:
        """Build everything as nnU-Net does, from a seed that is logged, with kernels in the device's format."""
        self.seed = torch.seed() % 2**31 if self.plan.seed is None else self.plan.seed
        torch.manual_seed(self.seed)
        self._topology()  # tells what of the plan's network nnU-Net would only assert
        super().initialize()
        if self.device.type == "cpu":
            use_cpu_operators(self.stock_network())
        described = precision.describe(self.device, self.plan.precision, compiled=self.compiled)
        self.print_to_log_file(f"seed {self.seed}, precision {described}")

    def on_train_start(self) -> None:
        """Put the weights in place, unless the run is resumed."""
        super().on_train_start()
        if self.current_epoch == 0:
            if self.seeded:
                self.load_pretrained()
            if self.plan.head_init == "fitted":
                self.fit_segmentation_layers()

    def fit_segmentation_layers(self) -> None:
        """Fit the fresh segmentation layers to the features of the first batches, so that no class starts dead.

        Takes `HEAD_BATCHES` training batches, and more until every class has been seen.
        """
        fit = HeadFit(self.stock_network(), regions=self.label_manager.has_regions)
        for index in range(MOST_HEAD_BATCHES):
            batch = next(self.dataloader_train)
            target = batch["target"]
            with precision.autocast(self.plan.precision, self.device):
                images = precision.formatted(batch["data"], self.device, compiled=self.compiled)
                fit.add(images, target if isinstance(target, list) else [target])
            if index + 1 >= HEAD_BATCHES and not (missing := fit.missing()):
                break
        if missing:
            self.print_to_log_file(f"WARNING: no voxel of class {missing} in {MOST_HEAD_BATCHES} batches")
        fit.apply()

    def load_pretrained(self) -> None:
        """Project the weights file onto the network, and keep the transfer report beside the checkpoints.

        Raises:
            HSSLError: the file is missing, or is not the one that the target was seeded with.
        """
        if self.block.weights is None or self.block.weights_sha256 is None:
            raise HSSLError(f"These plans name no weights. Run `{self._seeding(None)}`, or train with `--scratch`.")
        path, expected = Path(self.block.weights), self.block.weights_sha256
        if not path.is_file():
            raise HSSLError(
                f"{path}, the weights file that {self.plans_manager.plans_name}.json names, does not exist. Put it "
                f"back, or seed the plans with another: run `{self._seeding(None)}`."
            )
        tensors, metadata = load_weights(path)
        if (found := file_sha256(path)) != expected:
            raise HSSLError(
                f"{path} has sha256 {found[:12]}..., the plans were seeded with {expected[:12]}... "
                f"Run `{self._seeding(path)}` again."
            )
        domains = [Topology.from_architecture(d.architecture) for d in metadata.domains]
        entries = load_into(self.stock_network(), tensors, self._topology(), self.plan.transfer, domains)
        report = TransferReport(
            dataset=self.plans_manager.dataset_name,
            configuration=self.configuration_name,
            entries=tuple(entries),
            notes=tuple(
                leakage_notes(metadata, self.plans_manager.dataset_name, Path(self.preprocessed_dataset_folder_base))
            ),
        )
        for note in report.notes:
            self.print_to_log_file(f"WARNING: {note}")
        if self.local_rank == 0:
            write_json(Path(self.output_folder) / "transfer.json", report.to_json())
        taken = sum(entry.status != "fresh" for entry in entries)
        self.print_to_log_file(f"pretrained weights {path}, sha256 {expected}: {taken} of {len(entries)} tensors")

    def stock_network(self) -> nn.Module:
        """nnU-Net's network, without the wrappers of DDP and compile."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Resume: weights, optimiser, scaler, log and epoch; the plan's values are those of now, and said if changed.

        A run that has reached its last epoch is only validated: the weights it began with no longer matter.

        Raises:
            HSSLError: another network or optimiser; the plans have been seeded with other weights since.
        """
        if not self.was_initialized:
            self.initialize()
        checkpoint = load_checkpoint(filename_or_checkpoint)
        if self.seeded and checkpoint["current_epoch"] < self.num_epochs:
            check_weights(checkpoint, filename_or_checkpoint, self.block, self._seeding)
        self.go_on_from(checkpoint, filename_or_checkpoint, self.stock_network())
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
        torch.manual_seed(self.seed + self.current_epoch)  # not the draws of the first epochs again

    def _seeding(self, weights: str | Path | None) -> str:
        manager = self.plans_manager
        return seed_command(manager.dataset_name, weights, manager.plans_name, self.configuration_name)

    def _topology(self) -> Topology:
        path = Path(self.preprocessed_dataset_folder_base, f"{self.plans_manager.plans_name}.json")
        architecture = self.configuration_manager.configuration["architecture"]
        return Topology.from_architecture(architecture, f"{self.configuration_name} of {path}")

    # ---------------------------------------------------------------- optimiser, loss, step

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        """Decoder and encoder as parameter groups; the decoder's, never frozen, comes first: nnU-Net logs that one.

        Kernels take the device's format here, before nnU-Net wraps the network: DDP lays gradients out as they lie.
        """
        self.compiled = self._do_i_compile()
        layout = precision.memory_format(self.device, self._topology().dim, compiled=self.compiled)
        self.stock_network().to(memory_format=layout)
        # compile has wrapped the network already, and nnU-Net's decoder holds the encoder once more
        named = [(n.removeprefix("_orig_mod."), p) for n, p in self.network.named_parameters()]
        groups = [[p for n, p in named if n.startswith("encoder.") == is_encoder] for is_encoder in (False, True)]
        optimizer = build_optimizer(self.plan.optimizer, [(g, self.initial_lr) for g in groups], self.weight_decay)
        self.stepper = Stepper(optimizer, self.grad_scaler, GRADIENT_CLIP)
        return optimizer, EpochSchedule(optimizer, finetuning_multipliers(self.plan))

    def _build_loss(self) -> nn.Module:
        return _InFullPrecision(super()._build_loss())

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step in the hardware's precision and memory format; the loss stays on the device."""
        images, target = precision.formatted(batch["data"], self.device, compiled=self.compiled), batch["target"]
        targets = [t.to(self.device, non_blocking=True) for t in (target if isinstance(target, list) else [target])]
        self.optimizer.zero_grad(set_to_none=True)
        with precision.autocast(self.plan.precision, self.device):
            loss = self.loss(self.network(images), targets if isinstance(target, list) else targets[0])
        self.stepper(loss)
        return {"loss": loss.detach()}

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """nnU-Net's end of an epoch's training, with the losses it logs brought from the device."""
        losses = torch.stack([output["loss"] for output in train_outputs]).cpu().numpy()
        super().on_train_epoch_end([{"loss": loss} for loss in losses])
        for warning in self.stepper.guard.warnings():
            self.print_to_log_file(warning)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step in the hardware's precision and memory format."""
        batch["data"] = precision.formatted(batch["data"], self.device, compiled=self.compiled)
        with precision.autocast(self.plan.precision, self.device):
            return super().validation_step(batch)  # type: ignore[no-any-return]

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's validation in the hardware's precision."""
        with precision.autocast(self.plan.precision, self.device):
            super().perform_actual_validation(save_probabilities)

    def validate_whole_cases(self) -> None:
        """The look at whole validation cases, in the hardware's precision."""
        with precision.autocast(self.plan.precision, self.device):
            super().validate_whole_cases()


class _InFullPrecision(nn.Module):
    """nnU-Net's loss on float32 logits: its sums over voxels would lose digits in bf16."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor | list[Tensor], target: Tensor | list[Tensor]) -> Tensor:
        outputs = [o.float() for o in output] if isinstance(output, (list, tuple)) else output.float()
        device = outputs[0].device
        with torch.autocast(device.type, enabled=False):
            return self.loss(outputs, target)  # type: ignore[no-any-return]
