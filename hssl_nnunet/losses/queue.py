"""Embeddings of earlier steps as further negatives: many of them where a step holds few images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hssl_nnunet.losses.gather import gather_with_gradient

EMPTY = -1  # identity of no image


class NegativeQueue(nn.Module):
    """The last embeddings of each domain, so that a small domain is not crowded out by the large ones.

    Source: Wang et al. 2020, Cross-Batch Memory for Embedding Learning, https://arxiv.org/abs/1912.06798: embeddings
    drift slowly enough that those of past steps serve as they were. Different here: one queue for each domain.

    It is a module so that a checkpoint holds its buffers: a resumed run has the same negatives. Every process holds the
    same queue, that of all processes' images.
    """

    z: Tensor
    image: Tensor

    def __init__(self, domains: int, length: int, width: int):
        """Start empty.

        Args:
            domains: number of domains, T.
            length: embeddings that each domain keeps, Q; an image of a step counts twice, once for each view.
            width: width of an embedding, P.
        """
        super().__init__()
        self.register_buffer("z", torch.zeros(domains, length, width))
        self.register_buffer("image", torch.full((domains, length), EMPTY))

    @torch.no_grad()
    def push(self, z: Tensor, image: Tensor, task: Tensor) -> None:
        """Take the embeddings of a step, of every process, that are finite; each domain's oldest make room.

        Args:
            z: `(V, N, P)` l2-normalised embeddings.
            image: `(N,)` int64, identity of the image.
            task: `(N,)` int64, index of the domain.
        """
        views, (domains, length) = len(z), self.image.shape
        new = gather_with_gradient(z.float().transpose(0, 1)).flatten(0, 1)  # (N * V, P) of all processes
        image, task = (gather_with_gradient(x).repeat_interleave(views) for x in (image, task))
        finite = new.isfinite().all(1)  # a step that is skipped must not spoil those after it
        new, image = new.where(finite[:, None], 0), image.where(finite, EMPTY)
        old, old_image, old_task = self.entries()
        all_tasks = torch.cat([task, old_task])
        # place in the queue of its domain, the new ones first; shapes are fixed, so that nothing waits for a GPU
        own = all_tasks[:, None] == torch.arange(domains, device=z.device)
        place = (own.cumsum(0) - 1).gather(1, all_tasks[:, None])[:, 0]
        slot = torch.where(place < length, all_tasks * length + place, domains * length)  # the last one: what must go
        self.z.copy_(_at(slot, torch.cat([new, old]), domains * length).view_as(self.z))
        self.image.copy_(_at(slot, torch.cat([image, old_image]), domains * length).view_as(self.image))

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings `(T * Q, P)`, identities `(T * Q,)` (`EMPTY` where there is none yet), and domains `(T * Q,)`."""
        domains, length = self.image.shape
        task = torch.arange(domains, device=self.image.device).repeat_interleave(length)
        return self.z.flatten(0, 1), self.image.flatten(), task


def _at(slot: Tensor, values: Tensor, count: int) -> Tensor:
    """Rows by their slot, the first `count` of them."""
    return values.new_empty(count + 1, *values.shape[1:]).index_copy_(0, slot, values)[:count]
