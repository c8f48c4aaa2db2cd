"""What stands on top of the network in pretraining: pooled embedding `h`, projection `z`, embeddings of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


def pooled_statistics(features: Tensor, valid: Tensor, pooling: Literal["mean_max_std", "mean"]) -> Tensor:
    """Describe each feature map by numbers, over its valid voxels only.

    nnU-Net normalises every instance and channel, so the mean alone says almost nothing about the image; maximum and
    standard deviation restore it.

    Args:
        features: `(B, C, X, Y[, Z])`, at least float32.
        valid: `(B, 1, X, Y[, Z])` bool at the same resolution, False = padding. An image without a valid voxel at
            this resolution is described by all its voxels.
        pooling: which statistics.

    Returns:
        `(B, C)` for `mean`, `(B, 3 C)` for `mean_max_std`.
    """
    row = features.shape[-1]
    features, valid = features.flatten(2), valid.flatten(2)  # (B, C, N), (B, 1, N)
    valid = valid | ~valid.any(dim=2, keepdim=True)
    share = valid.to(features.dtype) / valid.sum(2, keepdim=True)  # what each voxel counts in a mean
    if pooling == "mean":
        return _mean(features, share)
    statistics: Tensor = _Statistics.apply(features, share, row)
    return statistics


def _mean(features: Tensor, share: Tensor) -> Tensor:
    # a product needs no masked copy of the large features; this way round, a row times a matrix, it is several times
    # faster on a CPU than a matrix times a column
    return (share @ features.transpose(1, 2))[:, 0]


def largest(features: Tensor, row: int) -> tuple[Tensor, Tensor]:
    """Maximum of each map of `(B, C, N)` and its first place, both `(B, C)`.

    A CPU finds a maximum whose place nobody asks for many times faster, as long as the channels lie last: it looks for
    the place in one row of each map alone, that of the maximum. N is a multiple of `row`.
    """
    if features.device.type != "cpu":
        return features.max(2)
    rows = features.transpose(1, 2).reshape(len(features), -1, row, features.shape[1]).amax(2)  # (B, N / row, C)
    maximum, number = rows.max(1)
    first = number[..., None] * row
    inside = features.gather(2, first + torch.arange(row)).argmax(2, keepdim=True)
    return maximum, (first + inside)[..., 0]


class _Statistics(torch.autograd.Function):
    """Mean, maximum and standard deviation of the valid voxels, `(B, 3 C)`.

    Their gradient is an affine map of the features and one voxel more, the maximum's: a few passes over one copy, where
    the automatic one makes many copies.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, share: Tensor, row: int) -> Tensor:
        mean = _mean(features, share)
        copy = features - mean[..., None]  # one copy for both: memory is what this costs
        deviation = (_mean(copy.square_(), share) + 1e-5).sqrt()  # 1e-5: gradient at variance 0
        nowhere = torch.zeros_like(share).masked_fill_(share == 0, -torch.inf)
        maximum, where = largest(torch.add(features, nowhere, out=copy), row)
        ctx.save_for_backward(features, share, mean, deviation, where)
        return torch.cat([mean, maximum, deviation], dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        features, share, mean, deviation, where = ctx.saved_tensors
        of_mean, of_maximum, of_deviation = grads[0].chunk(3, dim=1)
        slope = of_deviation / deviation
        offset = of_mean - slope * mean
        gradient = torch.addcmul(offset[..., None], features, slope[..., None]).mul_(share)
        return gradient.scatter_add_(2, where[..., None], of_maximum[..., None]), None, None


class LevelMean(nn.Module):
    """What is known of each level, mapped to a common width by the level's own linear layer, averaged, normalised.

    A shallow topology lacks the deep levels; the average over those it has keeps it on one scale with the others. All
    chunks of a step go through a layer at once: many small products cost more time than their numbers say. It computes
    in float32 under any autocast, whose casts would cost more than they save.
    """

    def __init__(self, features: Sequence[int], width: int):
        """Build the layers.

        Args:
            features: how many numbers describe each level, of the topology with the most levels.
            width: common width.
        """
        super().__init__()
        self.levels = nn.ModuleList(nn.Linear(f, width) for f in features)
        self.norm = nn.LayerNorm(width)

    def forward(self, chunks: Sequence[Sequence[Tensor]]) -> Tensor:
        """Join the levels.

        Args:
            chunks: of each chunk its levels, the finest first, each `(V, B, ..., features of the level)`; V and what
                stands for the dots are alike in all chunks.

        Returns:
            `(V, N, ..., width)` float32 of the N images of all chunks, in their order.
        """
        mapped: list[list[Tensor]] = [[] for _ in chunks]
        with torch.autocast(chunks[0][0].device.type, enabled=False):
            for level, linear in enumerate(self.levels):
                deep = [i for i, chunk in enumerate(chunks) if level < len(chunk)]
                if not deep:
                    break
                parts = [chunks[i][level] for i in deep]
                together = linear(torch.cat(parts, dim=1).to(self.norm.weight.dtype))
                for i, part in zip(deep, together.split([p.shape[1] for p in parts], dim=1), strict=True):
                    mapped[i].append(part)
            means = [torch.stack(levels).mean(0) for levels in mapped]
            return self.norm(torch.cat(means, dim=1))  # type: ignore[no-any-return]


class Embedding(LevelMean):
    """`h`: each level >= 1 pooled, and joined."""

    def __init__(self, features: Sequence[int], width: int, pooling: Literal["mean_max_std", "mean"]):
        """Build the layers.

        Args:
            features: width of each level of the deepest topology, level 0 first.
            width: width of `h`.
            pooling: statistics that describe a feature map.
        """
        per_channel = 1 if pooling == "mean" else 3
        super().__init__([per_channel * f for f in features[1:]], width)
        self.pooling: Literal["mean_max_std", "mean"] = pooling

    def pooled(self, skips: Sequence[Tensor], valid: Tensor) -> list[Tensor]:
        """Describe the levels of a batch; in float32 under any autocast.

        Args:
            skips: the encoder's features, level 0 first: `(B, C_l, X_l, Y_l[, Z_l])`.
            valid: `(B, 1, X, Y[, Z])` bool at level 0, False = padding.

        Returns:
            Of each level >= 1 its statistics, see `pooled_statistics`, float32.
        """
        share, statistics = valid.float(), []
        with torch.autocast(valid.device.type, enabled=False):
            for features in skips[1:]:
                share = _resize(share, features.shape[2:])  # strides are whole: means of means are means
                # a coarse voxel counts as valid when at least half of what it covers is
                statistics.append(pooled_statistics(features.float(), share >= 0.5, self.pooling))
        return statistics


def _resize(share: Tensor, shape: Sequence[int]) -> Tensor:
    pool = functional.adaptive_avg_pool3d if share.ndim == 5 else functional.adaptive_avg_pool2d
    return pool(share, tuple(shape))  # type: ignore[arg-type]


class Projector(nn.Module):
    """`z`: two-layer projection of `h`, on the unit sphere (Chen et al. 2020, section 4.2)."""

    def __init__(self, width: int, projection_width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, projection_width))

    def forward(self, h: Tensor) -> Tensor:
        """`(B, width)` -> `(B, projection_width)` of norm 1."""
        return functional.normalize(self.layers(h), dim=1)


class VoxelEmbedding(LevelMean):
    """What the decoder says of places: its features there, the levels joined and projected."""

    def __init__(self, features: Sequence[int], width: int, projection_width: int):
        """Build the layers.

        Args:
            features: width of each level of the deepest topology, level 0 first.
            width: common width of the levels.
            projection_width: width of an embedding.
        """
        super().__init__(features[:-1], width)  # the deepest is the bottleneck
        self.projector = Projector(width, projection_width)

    def forward(self, chunks: Sequence[Sequence[Tensor]]) -> Tensor:
        """Embed places.

        Args:
            chunks: of each chunk its levels, the finest first, see `at_places`: `(2, B, K, C_l)`.

        Returns:
            `(2, N, K, P)` float32 of norm 1, of the N images of all chunks.
        """
        h = super().forward(chunks)
        with torch.autocast(h.device.type, enabled=False):
            z: Tensor = self.projector(h.flatten(0, -2)).view(*h.shape[:-1], -1)
        return z


def at_places(levels: Sequence[Tensor], voxels: Tensor) -> list[Tensor]:
    """A decoder's features at places.

    Args:
        levels: features of both views, level 0 first: `(2 B, C_l, X_l, Y_l[, Z_l])`.
        voxels: `(2, B, K, D)` int64, voxels of the views.

    Returns:
        Of each level `(2, B, K, C_l)`.
    """
    at, size = voxels.flatten(0, 1), levels[0].shape[2:]  # (2 B, K, D)
    image, found = torch.arange(len(at), device=at.device)[:, None], []
    for features in levels:
        sizes = zip(size, features.shape[2:], strict=True)
        place = (image, *(at[..., axis] // (n // m) for axis, (n, m) in enumerate(sizes)))
        # channels last, as they lie on a CPU: the gradient then lies so as well
        found.append(features.movedim(1, -1)[place].view(*voxels.shape[:3], -1))
    return found
