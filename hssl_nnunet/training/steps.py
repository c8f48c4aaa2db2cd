"""From raw chunks to the network's input: views, hidden blocks, labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hssl_nnunet.data.correspondence import corresponding_points
from hssl_nnunet.data.crops import DomainGeometry, RawChunk
from hssl_nnunet.data.device import sent
from hssl_nnunet.data.masking import block_mask, hidden_blocks
from hssl_nnunet.data.views import Views, make_views
from hssl_nnunet.losses.hierarchical import Labels
from hssl_nnunet.losses.voxel import Points
from hssl_nnunet.networks.hssl_network import Chunk
from hssl_nnunet.plan_schema import DomainPlan
from hssl_nnunet.plan_values import PretrainingPlan
from hssl_nnunet.training.precision import memory_format


class ChunkPreparer:
    """Makes the network's input out of raw chunks, on the device."""

    def __init__(
        self,
        domains: Sequence[DomainPlan],
        geometries: Sequence[DomainGeometry],
        plan: PretrainingPlan,
        device: torch.device,
        compiled: bool = False,
    ):
        """Keep what does not change between steps.

        Args:
            domains: the corpus' domains.
            geometries: their crops, in the same order.
            plan: the pretraining plan.
            device: where views are made.
            compiled: whether the network is compiled; it decides in which memory format it likes its input.
        """
        self.geometries, self.plan, self.device, self.compiled = geometries, plan, device, compiled
        self.groups = group_indices(domains)

    def chunk(self, raw: RawChunk) -> Chunk:
        """Draw views and hide blocks of the first one; all randomness comes from `raw.seed`."""
        plan, geometry = self.plan, self.geometries[raw.domain]
        views = make_views(raw.to(self.device), geometry, plan.views, num_views=plan.loss.views)
        hidden = self._hidden(views.valid[0], geometry, raw.seed)
        seen = views.augmented.clone()
        seen[0] = seen[0].masked_fill(hidden, 0.0)
        layout = memory_format(self.device, seen.ndim - 3, compiled=self.compiled)
        seen = seen.flatten(0, 1).contiguous(memory_format=layout).view(seen.shape)
        return Chunk(raw.domain, seen, views.clean[0], views.valid, hidden, self._points(views, raw.seed))

    @property
    def _mask_ratio(self) -> float:
        return self.plan.loss.mask_ratio if self.plan.loss.reconstruction > 0 else 0.0

    def _hidden(self, valid: Tensor, geometry: DomainGeometry, seed: int) -> Tensor:
        if self._mask_ratio == 0:
            return torch.zeros_like(valid)
        block, generator = self.plan.loss.mask_block_voxel, torch.Generator()
        generator.manual_seed(seed + 1)  # + 1: not the stream of the views
        return block_mask(tuple(valid.shape), geometry.spacing, self._mask_ratio, block, generator, self.device)

    @property
    def shown_whole(self) -> list[int]:
        """Domains of which nothing is hidden though the plan masks: their crops are too few blocks."""
        if self._mask_ratio == 0:
            return []
        block = self.plan.loss.mask_block_voxel
        blocks = [hidden_blocks(g.crop_size, g.spacing, self._mask_ratio, block) for g in self.geometries]
        return [domain for domain, (_, hidden) in enumerate(blocks) if hidden == 0]

    def _points(self, views: Views, seed: int) -> Points | None:
        loss = self.plan.loss
        if loss.voxel == 0:
            return None
        generator = torch.Generator().manual_seed(seed + 2)  # neither the stream of the views nor that of the blocks
        return corresponding_points(views, loss.voxel_points, generator)

    def labels(self, raw: Sequence[RawChunk]) -> Labels:
        """Identity, domain and groups of a step's images, in the order of the chunks.

        An image that is drawn twice in a step, because its domain has few, keeps one identity; its views are then
        never each other's negatives.
        """
        image = torch.tensor([row for chunk in raw for row in chunk.rows])
        task = torch.tensor([chunk.domain for chunk in raw for _ in chunk.rows])
        return Labels(*(sent(t, self.device) for t in (image, task, self.groups[:, task])))


def group_indices(domains: Sequence[DomainPlan]) -> Tensor:
    """Index of each domain's group at each level of the hierarchy: `(L, number of domains)` int64."""
    levels = list(zip(*(d.groups for d in domains), strict=True))
    names = [sorted(set(level)) for level in levels]
    rows = [[known.index(group) for group in level] for level, known in zip(levels, names, strict=True)]
    return torch.tensor(rows)
