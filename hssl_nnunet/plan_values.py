"""Hyper-parameters as plan values: what `pretraining` and `finetuning` in the `hssl` block of a plans file hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from hssl_nnunet.typed_json import STRICT

Precision = Literal["auto", "fp32", "bf16"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # torch takes 64 bits, and a run adds small numbers to it


@dataclass(frozen=True, kw_only=True, slots=True)
class LossPlan:
    """Weights and forms of the five terms; a term of weight 0 is not computed.

    Attributes:
        image: weight of NT-Xent between two views of an image.
        task: weight of the term on the domain's identity.
        group: weight of the term on the groups, averaged over the levels of the hierarchy.
        reconstruction: weight of the decoder's mean squared error.
        voxel: weight of the contrast between places that both views of an image show, on the decoder's features. In the
            first view a place may be hidden, and is then told by what surrounds it.
        voxel_points: places of each image; fewer where the views share little (`overlap` under 0.5).
        voxel_tau: temperature of that contrast.
        tau: temperature of every other contrastive term.
        pooling: statistics of a feature map that describe its image; `mean` is the ablation.
        negatives: which images count as negatives in NT-Xent.
        queue_per_domain: embeddings of earlier steps that each domain keeps as further negatives in NT-Xent; 0 = none.
        task_loss: form of the task term.
        group_loss: form of the group term.
        reconstruction_target: voxels that count: the `masked` ones, or all (`full`).
        mask_ratio: share of blocks that are hidden from the encoder in the first view; none without `reconstruction`.
        mask_block_voxel: edge of a block in voxels along the finest axis; coarser axes get fewer, so that a block is
            near a cube in mm.
    """

    image: NonNegative
    task: NonNegative
    group: NonNegative
    reconstruction: NonNegative
    voxel: NonNegative = 0.0  # younger than format 1
    voxel_points: Count = 64
    voxel_tau: Positive = 0.1
    tau: Positive
    pooling: Literal["mean_max_std", "mean"]
    negatives: Literal["all", "same_task", "other_task"]
    queue_per_domain: Index = 0  # younger than format 1
    task_loss: Literal["classification", "contrast"]
    group_loss: Literal["classification", "contrast"]
    reconstruction_target: Literal["masked", "full"]
    mask_ratio: Fraction
    mask_block_voxel: Count

    __pydantic_config__ = STRICT

    @property
    def embeds(self) -> bool:
        """Whether any term works on the embedding `h` of a whole image."""
        return self.image > 0 or self.task > 0 or self.group > 0

    @property
    def contrasts(self) -> bool:
        """Whether any term works on its projection `z`."""
        task, group = self.task_loss == "contrast" and self.task > 0, self.group_loss == "contrast" and self.group > 0
        return self.image > 0 or task or group

    @property
    def views(self) -> int:
        """Views of an image; reconstruction alone needs one."""
        return 2 if self.embeds or self.voxel > 0 else 1

    @property
    def decoded_views(self) -> int:
        """Views that are decoded, the first ones."""
        return 2 if self.voxel > 0 else int(self.reconstruction > 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewPlan:
    """How a view is drawn from an image: geometry first, then intensity.

    Attributes:
        crop_fraction: edge of a crop as a share of the domain's patch, rounded to the domain's strides.
        overlap: least overlap of the two views, as a share of a crop's edge.
        rotation_degree: largest rotation; out of the plane only along axes whose spacing is under three times the
            finest, and whose edge of a crop is at least a third of the longest in mm.
        scale: largest change of size, 0.2 = a factor between 1/1.2 and 1.2.
        mirror: whether axes are mirrored at random.
        intensity: probability of each intensity transform (noise, blur, brightness, contrast, low resolution, gamma).
    """

    crop_fraction: Annotated[float, Field(gt=0, le=1)]
    overlap: Fraction
    rotation_degree: Annotated[float, Field(ge=0, le=180)]
    scale: Annotated[float, Field(ge=0, lt=1)]
    mirror: bool
    intensity: Fraction

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingPlan:
    """One pretraining run.

    Attributes:
        num_epochs: epochs, nnU-Net's word; the learning rate's schedule is tied to it.
        num_iterations_per_epoch: optimiser steps in an epoch.
        num_val_iterations_per_epoch: steps on held-out images in an epoch.
        save_every: epochs between checkpoints.
        chunks_per_step: chunks in a global step; each is `images_per_chunk` images of one domain.
        images_per_chunk: images in a chunk.
        alpha: a domain is drawn with probability ~ n_images ** alpha.
        held_out_fraction: share of patients kept for validation and probes.
        optimizer: `adamw`, or `sgd` (Nesterov, 0.99, as nnU-Net).
        initial_lr: peak learning rate.
        weight_decay: weight decay of the optimiser.
        warmup_epochs: epochs of linear warm-up before the polynomial decay.
        gradient_clip: largest norm of the gradient.
        embedding_width: width of `h`, the pooled features, and of what a place is described by.
        projection_width: width of the projections that contrasts compare.
        checkpointing: activations kept for the backward pass: all (`none`), or those of one `chunk` or one `image` at a
            time, the rest computed again. The gradient is the same; more images then cost memory for inputs and outputs
            alone.
        probe_every: epochs between linear probes, embedding picture and reconstruction sheet.
        precision: `auto` follows the hardware.
        num_workers: threads that read and crop ahead of the step.
        cache_gib: RAM of each process for decompressed volumes, in GiB, which are then read once.
        seed: seed of weights, sampling and augmentation.
        loss: the loss.
        views: the views.
    """

    num_epochs: Count
    num_iterations_per_epoch: Count
    num_val_iterations_per_epoch: Count
    save_every: Count
    chunks_per_step: Count
    images_per_chunk: Count
    alpha: Fraction
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)]
    optimizer: Literal["adamw", "sgd"]
    initial_lr: Positive
    weight_decay: NonNegative
    warmup_epochs: Index
    gradient_clip: Positive
    embedding_width: Count
    projection_width: Count
    checkpointing: Literal["none", "chunk", "image"] = "none"  # younger than format 1: older files lack it
    probe_every: Count
    precision: Precision
    num_workers: Index
    cache_gib: NonNegative = 0.0  # younger than format 1
    seed: Seed
    loss: LossPlan
    views: ViewPlan

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuningPlan:
    """One fine-tuning run, seeded or from scratch.

    Attributes:
        num_epochs: epochs, nnU-Net's word; the learning rate's schedule is tied to it.
        num_iterations_per_epoch: optimiser steps in an epoch.
        num_val_iterations_per_epoch: validation steps in an epoch.
        save_every: epochs between checkpoints.
        full_validation_every: epochs between looks at whole validation cases, for a curve of real Dice; 0 = never.
        use_mirroring: whether whole cases are predicted with nnU-Net's mirroring (test-time augmentation), eight times
            the work in 3D; the model keeps it.
        schedule: `warmup` (linear, then polynomial), `sawtooth` (decoder first, then all, each with a warm-up),
            or `stock` (nnU-Net's polynomial decay).
        warmup_epochs: epochs of each warm-up.
        decoder_epochs: epochs in which sawtooth trains the decoder alone.
        optimizer: `sgd` (Nesterov, 0.99, as nnU-Net) or `adamw`.
        initial_lr: peak learning rate with pretrained weights.
        scratch_lr: peak learning rate without.
        weight_decay: weight decay of the optimiser.
        head_init: start of the segmentation layers: `fitted` to the features of labelled voxels, so that no class can
            start dead, or `stock` (drawn at random, as nnU-Net does).
        transfer: what is taken of the pretrained weights: `all` that fits, the `encoder` alone, or what has an `equal`
            name and shape in the deepest domain's network, as stock nnU-Net could load it.
        precision: `auto` follows the hardware.
        seed: seed of the fresh layers and of torch; null draws one, and logs it.
    """

    num_epochs: Count
    num_iterations_per_epoch: Count
    num_val_iterations_per_epoch: Count
    save_every: Count
    full_validation_every: Index
    use_mirroring: bool
    schedule: Literal["warmup", "sawtooth", "stock"]
    warmup_epochs: Index
    decoder_epochs: Index
    optimizer: Literal["sgd", "adamw"]
    initial_lr: Positive
    scratch_lr: Positive
    weight_decay: NonNegative
    head_init: Literal["fitted", "stock"]
    transfer: Literal["all", "encoder", "equal"]
    precision: Precision
    seed: Seed | None

    __pydantic_config__ = STRICT

    def looks_at(self, epoch: int) -> bool:
        """Whether whole validation cases are due at the end of this epoch (from 0)."""
        return self.full_validation_every > 0 and (epoch + 1) % self.full_validation_every == 0
