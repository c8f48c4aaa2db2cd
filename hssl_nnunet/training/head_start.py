"""A start of the segmentation layers at which no class can be dead: linear discriminants of labelled voxels.

Freshly drawn segmentation layers decide by chance which class wins where, and the first steps of training may silence
a small class for good. Fitting them to the features before anything else is trained is *linear probing, then
fine-tuning* (Kumar et al. 2022, https://arxiv.org/abs/2202.10054); here in closed form (Fisher's discriminant), from
moments that are summed over a few batches: it costs forward passes only, and how the layers were drawn plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hssl_nnunet.training.distributed import rank_and_world

SHRINKAGE = 0.1  # share of the sphere in the covariance: keeps it invertible, and the logits moderate
VECTORS_PER_CLASS = 50_000  # of a batch and level: bounds time and memory; a small class is used whole


class ClassMoments:
    """Count, sum and second moment of the feature vectors of each class, summed over batches in float64.

    A voxel may belong to several classes, or to none.
    """

    def __init__(self, classes: int, features: int, device: torch.device | str = "cpu"):
        """Start at zero.

        Args:
            classes: number of classes, K.
            features: length of a feature vector, F.
            device: where moments are summed.
        """
        self.count = torch.zeros(classes, dtype=torch.float64, device=device)
        self.total = torch.zeros(classes, features, dtype=torch.float64, device=device)
        self.second = torch.zeros(classes, features, features, dtype=torch.float64, device=device)

    def add(self, features: Tensor, members: Tensor) -> None:
        """Add a batch.

        Args:
            features: `(N, F)`.
            members: `(N, K)` bool, which classes each vector belongs to.
        """
        for index, chosen in enumerate(members.unbind(1)):
            rows = chosen.nonzero().flatten()
            vectors = features[rows[:: -(-len(rows) // VECTORS_PER_CLASS) or 1]].to(self.count.device).double()
            self.count[index] += len(vectors)
            self.total[index] += vectors.sum(0)
            self.second[index] += vectors.T @ vectors

    def sum_over_ranks(self) -> None:
        """Sum over all processes, so that each fits the same layers."""
        if rank_and_world()[1] > 1:
            for moment in (self.count, self.total, self.second):
                dist.all_reduce(moment)

    @property
    def present(self) -> Tensor:
        """Classes that have voxels, `(K,)` bool."""
        return self.count > 0

    def means(self) -> Tensor:
        """Mean vector of each class, `(K, F)`; 0 where a class has no voxel."""
        return self.total / self.count.clamp(min=1)[:, None]

    def covariance(self) -> Tensor:
        """Covariance within classes, averaged over the classes that have voxels, shrunk towards a sphere: `(F, F)`."""
        means = self.means()
        within = self.second / self.count.clamp(min=1)[:, None, None] - means[:, :, None] * means[:, None, :]
        pooled = within[self.present].mean(0)
        sphere = torch.eye(len(pooled), dtype=pooled.dtype, device=pooled.device) * (pooled.diagonal().mean() + 1e-12)
        return (1 - SHRINKAGE) * pooled + SHRINKAGE * sphere


def discriminants(moments: ClassMoments) -> tuple[Tensor, Tensor]:
    """Fisher's linear discriminants of K equally likely classes, for a softmax.

    The logit of class k at x is (m_k - m)' S^-1 (x - m) - (m_k - m)' S^-1 (m_k - m) / 2 with class means m_k, their
    mean m and the covariance S: up to a term that all classes share, minus half the squared Mahalanobis distance of x
    and m_k. Hence each class wins at its own mean. A class without a voxel has a constant logit, that which the class
    farthest from m has at m: less than the others' mean anywhere, so that it never wins.

    Returns:
        Weights `(K, F)` and biases `(K,)`, float64.
    """
    means, present = moments.means(), moments.present[:, None]
    centre = means[moments.present].mean(0)
    offsets = torch.where(present, means - centre, 0.0)
    weights = torch.linalg.solve(moments.covariance(), offsets.T).T
    distances = (weights * offsets).sum(1)  # squared, of Mahalanobis
    biases = -(weights * centre).sum(1) - distances / 2
    return weights, torch.where(moments.present, biases, -distances.max() / 2)


def region_discriminants(moments: ClassMoments) -> tuple[Tensor, Tensor]:
    """The same for R of nnU-Net's regions, each a decision of its own between inside and outside, for a sigmoid.

    The logit is (m_1 - m_0)' S^-1 (x - (m_0 + m_1) / 2): positive at the mean inside, negative at the mean outside. A
    region without a voxel inside, or without one outside, gets the logit 0.

    Args:
        moments: 2 R classes: the insides, then the outsides.

    Returns:
        Weights `(R, F)` and biases `(R,)`, float64.
    """
    inside, outside = moments.means().chunk(2)
    both = torch.stack(moments.present.chunk(2)).all(0)[:, None]
    weights = torch.linalg.solve(moments.covariance(), torch.where(both, inside - outside, 0.0).T).T
    return weights, -(weights * (inside + outside) / 2).sum(1)


def class_members(target: Tensor, classes: int) -> Tensor:
    """Classes of each voxel of nnU-Net's integer target `(B, 1, X, Y[, Z])`: `(N, K)` bool; ignored ones have none."""
    return target.reshape(-1, 1).round().long() == torch.arange(classes, device=target.device)


def region_members(target: Tensor, regions: int) -> Tensor:
    """Insides and outsides of each voxel of nnU-Net's region target: `(N, 2 R)` bool.

    Args:
        target: `(B, R, X, Y[, Z])`, or one channel more, which marks ignored voxels.
        regions: R.
    """
    flat = target.movedim(1, -1).flatten(0, -2) > 0.5  # (N, R or R + 1)
    counted = ~flat[:, regions:].any(1, keepdim=True)
    return torch.cat([flat[:, :regions] & counted, ~flat[:, :regions] & counted], dim=1)


def _moments_device(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device  # which has no float64


class HeadFit:
    """Gathers moments of a network's features, and sets its segmentation layers from them."""

    def __init__(self, network: nn.Module, *, regions: bool):
        """Moments of zero for every segmentation layer.

        Args:
            network: a stock network, neither compiled nor wrapped.
            regions: whether its classes are nnU-Net's regions.
        """
        self.network, self.regions = network, regions
        decoder = network.get_submodule("decoder")
        layers = cast(list[nn.Conv3d], list(cast(nn.ModuleList, decoder.seg_layers)))  # deepest first
        self.layers = layers[::-1] if decoder.deep_supervision else layers[-1:]
        self.moments = [
            ClassMoments((1 + regions) * layer.out_channels, layer.in_channels, _moments_device(layer.weight.device))
            for layer in self.layers
        ]

    @torch.no_grad()
    def add(self, images: Tensor, targets: Sequence[Tensor]) -> None:
        """Add a batch.

        Args:
            images: `(B, C, X, Y[, Z])`.
            targets: nnU-Net's targets, one for each output of the network, finest first.
        """
        seen: list[Tensor] = []
        handles = [layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for layer in self.layers]
        try:
            self.network(images)
        finally:
            for handle in handles:
                handle.remove()
        members = region_members if self.regions else class_members
        for layer, moments, features, target in zip(self.layers, self.moments, seen[::-1], targets, strict=True):
            vectors = features.float().movedim(1, -1).flatten(0, -2)  # (N, F)
            moments.add(vectors, members(target.to(vectors.device), layer.out_channels))

    def missing(self) -> list[int]:
        """Outputs of the network that no process has seen a voxel for, at full resolution."""
        count = self.moments[0].count.clone()
        if rank_and_world()[1] > 1:
            dist.all_reduce(count)
        return (count[: self.layers[0].out_channels] == 0).nonzero().flatten().tolist()

    @torch.no_grad()
    def apply(self) -> None:
        """Set the segmentation layers; a layer no voxel was seen for stays as it is."""
        for layer, moments in zip(self.layers, self.moments, strict=True):
            moments.sum_over_ranks()
            if moments.present.any():
                weights, biases = region_discriminants(moments) if self.regions else discriminants(moments)
                layer.weight.copy_(weights.view_as(layer.weight))
                cast(Tensor, layer.bias).copy_(biases)
