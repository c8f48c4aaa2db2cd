"""Contrast between embeddings: two views of one image (NT-Xent), or images of one label (supervised contrast).

Both work on the embeddings of all processes, and every process returns the value over all of them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hssl_nnunet.losses.gather import gather_with_gradient
from hssl_nnunet.losses.queue import EMPTY, NegativeQueue


def nt_xent(
    z: Tensor,
    image: Tensor,
    task: Tensor,
    tau: float,
    negatives: Literal["all", "same_task", "other_task"],
    queue: NegativeQueue | None = None,
) -> Tensor:
    """Normalised temperature-scaled cross-entropy: an embedding finds the other view of its image among negatives.

    `mean_i -log( exp(z_i.z_i+ / tau) / sum_k exp(z_i.z_k / tau) )`, k over the other view i+ and the negatives of i.

    Source: Chen et al. 2020, SimCLR, eq. 1, https://arxiv.org/abs/2002.05709. Different here: `negatives` can be
    limited by task, embeddings of earlier steps may join them, and an image is never its own negative, though it was
    drawn twice in a step or lies in the queue.

    Args:
        z: (2, N, P) l2-normalised embeddings of two views.
        image: (N,) int64, identity of the image.
        task: (N,) int64, index of the domain.
        tau: temperature, > 0.
        negatives: images that count as negatives: `all` others, those of the `same_task`, or of every `other_task`.
        queue: embeddings of earlier steps, negatives by the same rule; no gradient flows into them.

    Returns:
        Scalar >= 0, at least float32. An anchor without negatives contributes 0.
    """
    image, task = (gather_with_gradient(x).repeat_interleave(2) for x in (image, task))
    others, other_image, other_task = queue.entries() if queue else (None, image[:0], task[:0])
    similarity = _similarity(z, tau, others)
    columns, column_tasks = torch.cat([image, other_image]), torch.cat([task, other_task])
    kept = (image[:, None] != columns) & (columns != EMPTY)
    if negatives != "all":
        kept &= (task[:, None] == column_tasks) == (negatives == "same_task")
    positive = torch.arange(len(image), device=z.device)[:, None] ^ 1  # rows 2n and 2n + 1 are the views of image n
    kept.scatter_(1, positive, True)  # not by index: that would wait for a GPU
    return (_log_sum_exp(similarity, kept) - similarity.gather(1, positive)[:, 0]).mean()


def supervised_contrast(z: Tensor, label: Tensor, tau: float) -> Tensor:
    """Supervised contrast: an embedding is drawn to all embeddings of its label, views included.

    `mean_i -1/|P(i)| sum_{p in P(i)} log( exp(z_i.z_p / tau) / sum_{a != i} exp(z_i.z_a / tau) )`,
    P(i) = the other embeddings with the label of i.

    Source: Khosla et al. 2020, eq. 2 (L_out), https://arxiv.org/abs/2004.11362, which sums over the anchors; here it is
    their mean, over the anchors that have a positive.

    Args:
        z: (V, N, P) l2-normalised embeddings.
        label: (N,) int64.
        tau: temperature, > 0.

    Returns:
        Scalar >= 0, at least float32. Without any positive 0, with a graph.
    """
    similarity = _similarity(z, tau)
    label = gather_with_gradient(label).repeat_interleave(len(z))
    other = ~torch.eye(len(label), dtype=torch.bool, device=z.device)
    positive = other & (label[:, None] == label[None, :])
    positives = positive.sum(1)  # (rows,)
    log_probability = similarity - _log_sum_exp(similarity, other)[:, None]
    per_anchor = -log_probability.masked_fill(~positive, 0).sum(1) / positives.clamp(min=1)
    return per_anchor.sum() / (positives > 0).sum().clamp(min=1)


def _similarity(z: Tensor, tau: float, others: Tensor | None = None) -> Tensor:
    """Scaled dot products of the M images of all processes with themselves and with K others: (V * M, V * M + K).

    The views of an image are neighbours.
    """
    rows = z.to(torch.promote_types(z.dtype, torch.float32)).transpose(0, 1)  # (N, V, P)
    rows = gather_with_gradient(rows).flatten(0, 1)
    columns = rows if others is None else torch.cat([rows, others.to(rows.dtype)])
    with torch.autocast(z.device.type, enabled=False):  # exp(1 / tau) magnifies the error of bfloat16
        return rows @ columns.T / tau


def _log_sum_exp(similarity: Tensor, kept: Tensor) -> Tensor:
    # the smallest number instead of -inf: a row of which nothing is kept then has no nan in its gradient
    return similarity.masked_fill(~kept, torch.finfo(similarity.dtype).min).logsumexp(1)
