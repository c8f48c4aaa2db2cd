"""Classification of the domain or of a group from the embedding of an image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def classification(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy `-log softmax(logits)[label]`, mean over views and images of this process.

    Args:
        logits: (V, N, K) for K classes; computed in at least float32.
        label: (N,) int64 in [0, K).

    Returns:
        Scalar >= 0. With as many images in every process, its mean over them is the value over all images.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(logits.flatten(0, 1), label.repeat(len(logits)))
