"""Pretraining inside nnU-Net's own training loop: the method, from batch to weights file."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from time import time
from typing import Any

import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hssl_nnunet.corpus.manifest import ImageRow
from hssl_nnunet.data.crops import DomainGeometry, RawChunk
from hssl_nnunet.data.loader import ChunkLoader
from hssl_nnunet.data.rows import read_rows
from hssl_nnunet.data.sampling import DomainSampler
from hssl_nnunet.data.split import held_out_rows
from hssl_nnunet.data.volumes import VolumeCache
from hssl_nnunet.losses.hierarchical import hierarchical_loss
from hssl_nnunet.networks.cpu_operators import use_cpu_operators
from hssl_nnunet.networks.hssl_network import HSSLNetwork
from hssl_nnunet.paths import WEIGHTS_FILE
from hssl_nnunet.plan_schema import corpus_block
from hssl_nnunet.plan_values import PretrainingPlan
from hssl_nnunet.ranks import own_device, under_torchrun
from hssl_nnunet.remedies import seed_command
from hssl_nnunet.training import precision
from hssl_nnunet.training.distributed import check_same_epoch, rank_and_world
from hssl_nnunet.training.epoch_log import curves, log_values, mean_terms, report
from hssl_nnunet.training.memory import keep_freed_memory
from hssl_nnunet.training.monitor import Monitor, no_probe
from hssl_nnunet.training.optimizer import Stepper, build_optimizer
from hssl_nnunet.training.pictures import plot_curves
from hssl_nnunet.training.provenance import weights_metadata
from hssl_nnunet.training.resume import IMAGES_KEY, check_images, check_weights, images_sha256
from hssl_nnunet.training.schedule import EpochSchedule, warmup_poly
from hssl_nnunet.training.steps import ChunkPreparer
from hssl_nnunet.training.trainer import PlannedTrainer
from hssl_nnunet.transfer.checkpoints import load_checkpoint
from hssl_nnunet.transfer.continuing import load_start
from hssl_nnunet.transfer.weights_file import save_weights


class HSSLPretrainer(PlannedTrainer):
    """Pretrains shared weights on the corpus whose plans it is given.

    Every random draw (chunks, crops, views, masks) is a pure function of the plan's seed and the step's index, and the
    learning rate one of the epoch, so that a checkpoint of nnU-Net's layout resumes the run exactly. Nothing is
    segmented: what nnU-Net calls the best EMA is here the lowest held-out loss.
    """

    plan: PretrainingPlan
    is_ddp: bool
    my_init_kwargs: dict[str, Any]

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
        if device.type == "cpu" or under_torchrun():
            self.device = own_device(device)  # under DDP nnU-Net takes the GPU of the global rank
        if self.device.type == "cpu":
            keep_freed_memory()
        self.corpus = corpus_block(self.plans_manager.plans, f"{self.plans_manager.plans_name}.json")
        self.plan = plan = self.corpus.pretraining
        self.take_length(plan)
        self.initial_lr, self.weight_decay = plan.initial_lr, plan.weight_decay
        self.enable_deep_supervision = False
        self.grad_scaler = precision.grad_scaler(plan.precision, self.device)

    # ---------------------------------------------------------------- network, optimiser, data

    def initialize(self) -> None:
        """Build network, optimiser and schedule from the plans."""
        torch.manual_seed(self.plan.seed)  # every rank starts from the same weights
        self.batch_size = self.plan.chunks_per_step * self.plan.images_per_chunk
        self.geometries = [DomainGeometry.from_domain(d, self.plan.views) for d in self.corpus.domains]
        compiled = self._do_i_compile()
        # kernels lie in memory as the images do; shared ones are 3D, whatever the domains are
        layout = precision.memory_format(self.device, 3, compiled=compiled)
        self.model = HSSLNetwork(self.corpus, compiled=compiled).to(self.device).to(memory_format=layout)
        if self.device.type == "cpu":
            for domain in self.model.domains:
                use_cpu_operators(domain.skeleton)
        self.root = Path(self.preprocessed_dataset_folder_base)
        self.start = load_start(self.model.shared, self.corpus, self._plans_file())
        if self.start is not None:
            self.print_to_log_file(f"goes on from {self.corpus.weights}")
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.network = self._shared_by_ranks() if self.is_ddp else self.model
        self.dataset_class = nnUNetDatasetBlosc2
        self.cache = VolumeCache(self.plan.cache_gib)
        self.rows = read_rows(self.corpus.domains, self._plans_file())
        self.my_init_kwargs = {**self.my_init_kwargs, IMAGES_KEY: images_sha256(self.rows)}  # goes into checkpoints
        self.preparer = ChunkPreparer(self.corpus.domains, self.geometries, self.plan, self.device, compiled)
        self.monitor = Monitor(self.corpus, self.geometries, self.root.parent, Path(self.output_folder))
        self.was_initialized = True
        described = precision.describe(self.device, self.plan.precision, compiled=compiled)
        self.print_to_log_file(f"precision {described}")
        for index in self.preparer.shown_whole:
            self.print_to_log_file(
                f"WARNING: {self.corpus.domains[index].dataset_name}: crops of {self.geometries[index].crop_size} "
                "voxels are too few blocks to hide one: lower `loss.mask_block_voxel`"
            )

    def _plans_file(self) -> Path:
        return self.root / f"{self.plans_manager.plans_name}.json"

    def _shared_by_ranks(self) -> DistributedDataParallel:
        """The network under DDP.

        Ranks draw different domains, hence different parameters, and each fills the same queue on its own. Compiled
        networks stay whole: DDP would cut them at the borders of its buckets, which hold none of their parameters.
        """
        torch._dynamo.config.optimize_ddp = False
        return DistributedDataParallel(self.model, find_unused_parameters=True, broadcast_buffers=False)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        """Optimiser over shared weights and heads; linear warm-up, then nnU-Net's polynomial decay."""
        plan = self.plan
        group = list(self.model.parameters()), plan.initial_lr
        optimizer = build_optimizer(plan.optimizer, [group], plan.weight_decay)
        self.stepper = Stepper(optimizer, self.grad_scaler, plan.gradient_clip)
        multiplier = partial(warmup_poly, start=0, warmup=plan.warmup_epochs, end=plan.num_epochs)
        return optimizer, EpochSchedule(optimizer, [multiplier])

    def get_dataloaders(self) -> tuple[ChunkLoader, ChunkLoader]:
        """Loaders of raw chunks of the training and of the held-out images; they continue at the current epoch."""
        held_out = held_out_rows(self.rows, self.plan.held_out_fraction, self.plan.seed)
        training = [row for row in range(len(self.rows)) if row not in held_out]
        self.print_to_log_file(f"{len(training)} images to train on, {len(held_out)} held out")
        if not held_out:
            self.print_to_log_file("WARNING: nobody is held out: val_ values and probes are of training images")
        first = self.current_epoch
        return (
            self._loader(training, self.plan.seed, first * self.num_iterations_per_epoch),
            self._loader(sorted(held_out) or training, self.plan.seed + 1, first * self.num_val_iterations_per_epoch),
        )

    def _loader(self, rows: list[int], seed: int, first_step: int) -> ChunkLoader:
        plan = self.plan
        sampler = DomainSampler(
            [self.rows[row].domain for row in rows],
            alpha=plan.alpha,
            chunks_per_step=plan.chunks_per_step,
            images_per_chunk=plan.images_per_chunk,
            seed=seed,
        )
        rank, world = rank_and_world()
        return ChunkLoader(
            sampler,
            self.rows,
            rows,
            self.geometries,
            plan.views,
            self.root.parent,
            rank=rank,
            world_size=world,
            num_workers=plan.num_workers,
            cache=self.cache,
            pin_memory=self.device.type == "cuda",
            first_step=first_step,
        )

    # ---------------------------------------------------------------- the step

    def train_step(self, batch: list[RawChunk]) -> dict[str, Tensor]:
        """One step of the optimiser over this process' chunks; the loss' terms stay on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.terms(batch, remember=True)
        self.stepper(terms["total"])
        return {name: value.detach() for name, value in terms.items()}

    def terms(self, batch: list[RawChunk], *, remember: bool = False) -> dict[str, Tensor]:
        """The loss' terms and their weighted total; `remember`: later steps' negatives are these embeddings too."""
        with torch.no_grad():
            chunks = [self.preparer.chunk(raw) for raw in batch]
        with precision.autocast(self.plan.precision, self.device):
            outputs = self.network(chunks)
        labels, queue = self.preparer.labels(batch), self.model.queue
        terms = hierarchical_loss(outputs, labels, self.plan.loss, queue)
        if remember and queue is not None and outputs.z is not None:
            queue.push(outputs.z, labels.image, labels.task)
        return terms

    def validation_step(self, batch: list[RawChunk]) -> dict[str, Tensor]:
        """The loss' terms on held-out images; they stay on the device."""
        return {name: value.detach() for name, value in self.terms(batch).items()}

    # ---------------------------------------------------------------- nnU-Net's loop

    def on_train_start(self) -> None:
        """nnU-Net's start, where all ranks go on from the same checkpoint."""
        if not self.was_initialized:
            self.initialize()
        check_same_epoch(self.current_epoch, Path(self.output_folder), self.device)
        super().on_train_start()

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Pretraining has none."""

    def plot_network_architecture(self) -> None:
        """The corpus has one architecture for each domain; nnU-Net plots them when it trains them."""

    def _save_debug_information(self) -> None:
        """nnU-Net writes every attribute as text; of 10^5 images that would be 40 MiB."""
        kept, self.rows, self.start = (self.rows, self.start), [], None
        super()._save_debug_information()
        self.rows, self.start = kept

    def on_train_epoch_end(self, train_outputs: list[dict[str, Tensor]]) -> None:
        """Log the mean of each term."""
        self._log(mean_terms("train", train_outputs, self.device))
        for warning in self.stepper.guard.warnings():
            self.print_to_log_file(warning)

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Tensor]]) -> None:
        """Log the mean of each term, and run the probes when they are due."""
        self._log(mean_terms("val", val_outputs, self.device))
        last = self.current_epoch + 1 == self.num_epochs
        due = last or (self.current_epoch + 1) % self.plan.probe_every == 0
        if self.local_rank == 0:
            self._log(self._probe() if due else no_probe())

    def _log(self, values: dict[str, float]) -> None:
        log_values(self.logger, values, self.current_epoch)

    def _probe(self) -> dict[str, float]:
        held_out = held_out_rows(self.rows, self.plan.held_out_fraction, self.plan.seed)
        parts: tuple[list[ImageRow], list[ImageRow]] = ([], [])
        for index, row in enumerate(self.rows):
            parts[index in held_out].append(row)
        if self.plan.loss.reconstruction > 0:
            # always the same images, and the loader of this rank stays in step with the others'
            self.monitor.draw_reconstructions(self.model, self.preparer, self.dataloader_val.read(0))
        return self.monitor.probe(self.model, *parts) if self.model.embedding is not None else no_probe()

    def on_epoch_end(self) -> None:
        """Print, draw and save; the best checkpoint is the one of the lowest held-out loss."""
        self.logger.log("epoch_end_timestamps", time(), self.current_epoch)
        if self.local_rank == 0:
            for line in report(self.logger):
                self.print_to_log_file(line)
            plot_curves(Path(self.output_folder) / "progress.png", curves(self.logger))
        held_out_loss = self.logger.get_value("val_losses", -1)
        if math.isfinite(held_out_loss) and (self._best_ema is None or held_out_loss < self._best_ema):
            self._best_ema = held_out_loss
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_best.pth"))
        if (self.current_epoch + 1) % self.save_every == 0 and self.current_epoch + 1 < self.num_epochs:
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        self.current_epoch += 1

    def on_train_end(self) -> None:
        """Save the last checkpoint and the weights file."""
        super().on_train_end()
        for loader in (self.dataloader_train, self.dataloader_val):
            loader.close()
        if self.local_rank == 0:
            self.save_weights(Path(self.output_folder) / WEIGHTS_FILE)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing is segmented in pretraining; nnU-Net calls this after training."""
        weights, plans = Path(self.output_folder) / WEIGHTS_FILE, self.plans_manager.plans_name
        self.print_to_log_file(f"Next: {seed_command('TARGET', weights, plans, self.configuration_name)}")

    # ---------------------------------------------------------------- files

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Resume: weights, optimiser, scaler, log and epoch; data and learning rate follow from the epoch."""
        if not self.was_initialized:
            self.initialize()
        checkpoint = load_checkpoint(filename_or_checkpoint)
        check_images(checkpoint, filename_or_checkpoint, self.rows)
        check_weights(checkpoint, filename_or_checkpoint, self.corpus, self._seeding)
        self.go_on_from(checkpoint, filename_or_checkpoint, self.model)

    def _seeding(self, weights: Path) -> str:
        return seed_command(self.plans_manager.dataset_name, weights, self.plans_manager.plans_name)

    def save_weights(self, path: Path) -> None:
        """Write the weights file: shared weights that were trained, heads, and where they come from."""
        heads = {n: p for n, p in self.model.state_dict().items() if not n.startswith(("shared.", "queue."))}
        logged = curves(self.logger)
        learned = weights_metadata(self.corpus, self.model.shared, self.rows, logged, self.current_epoch, self.start)
        save_weights(path, self.model.trained(), heads, learned)
        self.print_to_log_file(f"Wrote {path}")
