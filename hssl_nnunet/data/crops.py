"""From preprocessed images to raw chunks: a box of each image, large enough for all its views.

Arrays are nnU-Net's preprocessed ones, (C, X, Y, Z) float32 after the plans' `transpose_forward`. A 2d configuration
reads one random slice along the first axis, so that its tensors are (B, 1, Y, X) in nnU-Net's own words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from torch import Tensor

from hssl_nnunet.corpus.manifest import ImageRow
from hssl_nnunet.data.sampling import ChunkPlan
from hssl_nnunet.data.volumes import open_volume
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.plan_schema import DomainPlan
from hssl_nnunet.plan_values import ViewPlan

TRIES = 4  # boxes drawn until one is not empty
SHORT_RATIO = 3  # longest edge of a crop over the shortest along which views are still rotated and scaled
EMPTY_STD = 0.05  # of intensities normalised by the plan; below it a crop shows background alone


def crop_size(patch_size: Sequence[int], total_stride: Sequence[int], crop_fraction: float) -> tuple[int, ...]:
    """Edges of a crop in voxels: about `crop_fraction` of the patch, and divisible by the domain's own strides.

    Each edge is a multiple of the total stride along its axis, at least one multiple and at most the patch.
    The bottleneck keeps more than one voxel, since an instance norm has nothing to normalise in a single one.

    Args:
        patch_size: the plan's patch, in voxels.
        total_stride: voxels of the patch per voxel of the bottleneck, for each axis.
        crop_fraction: edge of the crop as a share of the patch's, in (0, 1].

    Raises:
        HSSLError: even the whole patch has a bottleneck of a single voxel.
    """
    largest = [max(1, n // stride) for n, stride in zip(patch_size, total_stride, strict=True)]
    wanted = [math.floor(n * crop_fraction / stride + 0.5) for n, stride in zip(patch_size, total_stride, strict=True)]
    bottleneck = [min(max(1, n), most) for n, most in zip(wanted, largest, strict=True)]
    if math.prod(bottleneck) == 1:
        bottleneck[largest.index(max(largest))] = 2
    if math.prod(largest) == 1:
        raise HSSLError(
            f"A patch of {tuple(patch_size)} voxels shrinks to a single voxel under its plan's total stride of "
            f"{tuple(total_stride)}, which no instance norm can train on. Plan the dataset again: "
            "`hssl plan_and_preprocess -d ...`."
        )
    return tuple(n * stride for n, stride in zip(bottleneck, total_stride, strict=True))


@dataclass(frozen=True, slots=True)
class DomainGeometry:
    """Size and spacing of a domain's crops.

    Attributes:
        crop_size: edges of a view, in voxels.
        spacing: mm per voxel along the same axes.
    """

    crop_size: tuple[int, ...]
    spacing: tuple[float, ...]

    @classmethod
    def from_domain(cls, domain: DomainPlan, view_plan: ViewPlan) -> DomainGeometry:
        """Geometry of a domain's crops under its own plan; a 2d plan drops the first axis of the spacing."""
        total_stride = Topology.from_architecture(domain.architecture, domain.dataset_name).total_stride
        size = crop_size(domain.patch_size, total_stride, view_plan.crop_fraction)
        return cls(crop_size=size, spacing=tuple(domain.spacing[-len(size) :]))

    @property
    def fine_axes(self) -> tuple[int, ...]:
        """Axes along which views may be interpolated, all but the coarse and the short ones.

        Coarse is a spacing at least three times the finest, nnU-Net's threshold for a separate treatment of an axis.
        Short is an edge of a crop, in mm, under a third of the longest among the axes that are not coarse, or one of a
        single voxel: a slab that is rotated out of its plane would leave the box that is read for it.
        """
        limit = ANISO_THRESHOLD * min(self.spacing)
        edges_mm = {
            axis: n * s for axis, (n, s) in enumerate(zip(self.crop_size, self.spacing, strict=True)) if s < limit
        }
        longest = max(edges_mm.values())
        return tuple(
            axis for axis, edge in edges_mm.items() if self.crop_size[axis] > 1 and edge * SHORT_RATIO >= longest
        )

    def largest_offset(self, plan: ViewPlan) -> tuple[int, ...]:
        """Largest distance of a view's centre from the box's, in whole voxels.

        Two views shifted apart by it still share `plan.overlap` of their edge.
        """
        return tuple(math.floor((1 - plan.overlap) * n / 2) for n in self.crop_size)

    def margin(self, plan: ViewPlan) -> tuple[int, ...]:
        """Voxels that the box holds beyond the crop on each side: offset, rotation and scale; at most half a crop."""
        offset = self.largest_offset(plan)
        half_mm = [s * (n - 1) / 2 for s, n in zip(self.spacing, self.crop_size, strict=True)]
        swing = math.sin(math.radians(min(plan.rotation_degree, 90))) if len(self.fine_axes) > 1 else 0.0
        margin = list(offset)
        for axis in self.fine_axes:
            others = sum(half_mm[a] for a in self.fine_axes if a != axis)
            reach = (1 + plan.scale) * (half_mm[axis] + swing * others)
            margin[axis] += math.ceil((reach - half_mm[axis]) / self.spacing[axis])
        return tuple(min(m, n // 2) for m, n in zip(margin, self.crop_size, strict=True))


@dataclass(frozen=True, slots=True)
class RawChunk:
    """Boxes of a chunk's images, as preprocessed, before any augmentation.

    Attributes:
        domain: index into the corpus' domains.
        rows: index of each image's row in the corpus' manifest.
        seed: seed of the views.
        source: (B, 1, X', Y'[, Z']) float32, normalised by the plan; beyond the image its edge is repeated.
        bounds: (B, D, 2) int64, first and last voxel of each axis that the image itself fills; on the CPU.
    """

    domain: int
    rows: tuple[int, ...]
    seed: int
    source: Tensor
    bounds: Tensor

    def pinned(self) -> RawChunk:
        """The same chunk in page-locked memory, from which a GPU copies while it computes; needs a GPU."""
        return replace(self, source=self.source.pin_memory())

    def to(self, device: torch.device | str) -> RawChunk:
        """The same chunk with its boxes on another device."""
        return replace(self, source=self.source.to(device, non_blocking=True))


def read_chunk(
    plan: ChunkPlan,
    rows: Sequence[ImageRow],
    geometry: DomainGeometry,
    view_plan: ViewPlan,
    root: Path,
    opened: Callable[[Path], Any] = open_volume,
) -> RawChunk:
    """Read a random box of each image of a chunk; its position depends on `plan.seed` alone.

    The views' crops lie inside the image where it is large enough; a smaller image is centred. A box whose crop is
    nearly constant is drawn again a few times. Only the blocks that a box touches are read and decompressed.

    Args:
        plan: the chunk.
        rows: the list into which `plan.rows` points.
        geometry: size and spacing of the domain's crops.
        view_plan: how views are drawn later.
        root: the folder `nnUNet_preprocessed`.
        opened: opens a `.b2nd` file as an array (C, X, Y, Z).

    Raises:
        HSSLError: a file is missing, truncated or lacks the channel.
    """
    boxes = [
        _read_image(root, rows[index], geometry, view_plan, np.random.default_rng([plan.seed, position]), opened)
        for position, index in enumerate(plan.rows)
    ]
    source, bounds = (torch.from_numpy(np.stack(part)) for part in zip(*boxes, strict=True))
    return RawChunk(plan.domain, plan.rows, plan.seed, source[:, None], bounds)


def _read_image(
    root: Path,
    row: ImageRow,
    geometry: DomainGeometry,
    view_plan: ViewPlan,
    rng: np.random.Generator,
    opened: Callable[[Path], Any],
) -> tuple[np.ndarray, np.ndarray]:
    path, case = root / row.preprocessed, f"case {row.case} of {row.dataset_name}"
    try:
        array = opened(path)
        if array.ndim == 4 and row.channel < array.shape[0]:
            return _draw_box(array, row.channel, geometry, view_plan, rng)
    except (OSError, RuntimeError, ValueError) as error:
        raise HSSLError(
            f"Cannot read {case} from {path}: {error}. Remove that file if it is there, and run "
            f"`hssl plan_and_preprocess -d {row.dataset_name}` with the options of the last time: it makes it anew."
        ) from error
    raise HSSLError(
        f"Cannot read {case} from {path}: shape {array.shape} has no channel {row.channel} of a (C, X, Y, Z) image. "
        "Run `hssl corpus -d ... -o ... --overwrite`, which writes anew what the corpus holds."
    )


def _draw_box(
    array: Any, channel: int, geometry: DomainGeometry, view_plan: ViewPlan, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    crop, margin = geometry.crop_size, geometry.margin(view_plan)
    inner = tuple(slice(m, m + n) for m, n in zip(margin, crop, strict=True))
    sizes = array.shape[-len(crop) :]
    for _ in range(TRIES):
        index = [channel, *(int(rng.integers(n)) for n in array.shape[1 : -len(crop)])]  # 2d: a random slice
        start = [_draw_start(*axis, rng) for axis in zip(sizes, crop, geometry.largest_offset(view_plan), strict=True)]
        source, bounds = _read_box(array, index, start, margin, crop)
        if source[inner].std() > EMPTY_STD:
            break
    return source, bounds


def _draw_start(size: int, crop: int, offset: int, rng: np.random.Generator) -> int:
    """First voxel of the central crop: room for the views' offsets where the image has it, else centred."""
    slack = size - crop
    if slack < 0:
        return slack // 2
    low = min(offset, slack // 2)
    return int(rng.integers(low, slack - low + 1))


def _read_box(
    array: Any, index: Sequence[int], start: Sequence[int], margin: Sequence[int], crop: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Crop and margin, edge-replicated beyond the image, and the first and last voxel of each axis that it fills."""
    sizes = array.shape[-len(crop) :]
    lows = [s - m for s, m in zip(start, margin, strict=True)]
    highs = [s + n + m for s, n, m in zip(start, crop, margin, strict=True)]
    inside = [slice(max(0, low), min(n, high)) for low, high, n in zip(lows, highs, sizes, strict=True)]
    pad = [(s.start - low, high - s.stop) for s, low, high in zip(inside, lows, highs, strict=True)]
    voxels = np.asarray(array[tuple(index) + tuple(inside)], dtype=np.float32)
    bounds = np.array([(before, before + n - 1) for (before, _), n in zip(pad, voxels.shape, strict=True)])
    return np.pad(voxels, pad, mode="edge"), bounds
