"""The loss of pretraining: voxel, image, task and group of the hierarchy, and reconstruction, weighted by the plan.

`L = w_voxel L_voxel + w_image L_image + w_task L_task + w_group L_group + w_rec L_rec`

Source: Zheng et al. 2021, Hierarchical Self-Supervised Learning for Medical Image Segmentation Based on Multi-Domain
Data Aggregation, https://arxiv.org/abs/2107.04886. A reconstruction from its abstract, which fixes the levels and the
combination of contrast and classification; weights, temperature, the form of each term and the voxel term are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hssl_nnunet.losses.classification import classification
from hssl_nnunet.losses.contrastive import nt_xent, supervised_contrast
from hssl_nnunet.losses.queue import NegativeQueue
from hssl_nnunet.losses.reconstruction import Reconstruction, reconstruction_error
from hssl_nnunet.losses.voxel import VoxelEmbeddings, voxel_contrast
from hssl_nnunet.plan_values import LossPlan


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known of the N images of this process' part of the step.

    Attributes:
        image: (N,) int64, identity of the image, the same number in every process.
        task: (N,) int64, index of the domain.
        groups: (L, N) int64, index of the group at each level of the hierarchy.
    """

    image: Tensor
    task: Tensor
    groups: Tensor


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the network made of the images; parts that no term needs may be missing.

    Attributes:
        z: (V, N, P) l2-normalised projections of V = 2 views, or None.
        task_logits: (V, N, T) for T domains, or None.
        group_logits: (V, N, G_l) for each level l of the hierarchy, or empty.
        reconstructions: one per chunk, or empty.
        voxels: places of the images, or None.
    """

    z: Tensor | None
    task_logits: Tensor | None
    group_logits: tuple[Tensor, ...]
    reconstructions: tuple[Reconstruction, ...]
    voxels: VoxelEmbeddings | None = None


def hierarchical_loss(
    outputs: Outputs, labels: Labels, plan: LossPlan, queue: NegativeQueue | None = None
) -> dict[str, Tensor]:
    """Weighted sum of the terms that the plan switches on; a term of weight 0 is not computed.

    With N images in every process, the mean of each value over the processes is its value over all images, and DDP's
    mean of the gradients is the gradient of one process with all images.

    Args:
        outputs: at least the parts that the terms with a weight need.
        labels: of the same N images.
        plan: weights and forms of the terms, of which one at least has a weight.
        queue: embeddings of earlier steps, further negatives of the image term.

    Returns:
        The unweighted value of each term with weight > 0, among `image`, `task`, `group`, `reconstruction` and
        `voxel`, and `total`, the weighted sum. Scalars, at least float32.
    """
    terms: dict[str, Tensor] = {}
    if plan.image > 0:
        terms["image"] = nt_xent(_projections(outputs), labels.image, labels.task, plan.tau, plan.negatives, queue)
    if plan.task > 0:
        terms["task"] = _label_term(plan.task_loss, outputs, outputs.task_logits, labels.task, plan.tau)
    if plan.group > 0:
        logits = outputs.group_logits or (None,) * len(labels.groups)
        levels = zip(logits, labels.groups, strict=True)
        values = [_label_term(plan.group_loss, outputs, level, label, plan.tau) for level, label in levels]
        terms["group"] = torch.stack(values).mean()
    if plan.reconstruction > 0:
        terms["reconstruction"] = reconstruction_error(outputs.reconstructions, plan.reconstruction_target)
    if plan.voxel > 0:
        if outputs.voxels is None:
            raise ValueError("The voxel term has a weight > 0, but the network gave no `voxels`.")
        terms["voxel"] = voxel_contrast(outputs.voxels, plan.voxel_tau)
    total = torch.stack([getattr(plan, name) * value for name, value in terms.items()]).sum()
    return {**terms, "total": total}


def _label_term(
    form: Literal["classification", "contrast"], outputs: Outputs, logits: Tensor | None, label: Tensor, tau: float
) -> Tensor:
    if form == "contrast":
        return supervised_contrast(_projections(outputs), label, tau)
    if logits is None:
        raise ValueError("A classification term has a weight > 0, but the network gave no logits for it.")
    return classification(logits, label)


def _projections(outputs: Outputs) -> Tensor:
    if outputs.z is None:
        raise ValueError("A contrastive term has a weight > 0, but the network gave no projections `z`.")
    return outputs.z
