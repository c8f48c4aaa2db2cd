"""What the embeddings hold: their rank, the labels a linear classifier reads from them and its floor, the image."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

Floats = NDArray[np.float64]
FEWEST_FOR_RANK = 10
"""Images. The rank of N embeddings is N - 1 at most: that of three images, 2 however good they are, would pass for a
collapse."""
HISTOGRAM_EDGES = np.linspace(-4, 4, 33)
"""In units of nnU-Net's normalised intensities; values outside fall into the first or last bin."""


def effective_rank(h: Tensor | NDArray[Any]) -> float:
    """Effective rank: exp of the entropy of the normalised singular values of the centred embeddings.

    `exp(-sum_k p_k log p_k)`, `p_k = s_k / sum s`; between 1 (a line) and min(N - 1, D) (a round cloud).

    Source: Roy & Vetterli 2007, The effective rank, eq. 1-3; centred here, so that an offset common to all images does
    not count as a direction.

    Args:
        h: (N, D) embeddings.

    Returns:
        The rank; 0 when all embeddings are the same but for rounding (complete collapse), nan for N = 0 or non-finite.
    """
    rows = _array(h)
    if not rows.size or not np.isfinite(rows).all():
        return nan
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    values = values[values > np.finfo(np.float32).eps * np.linalg.norm(rows)]
    p = values / values.sum()
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


def linear_probe_accuracy(
    features: Tensor | NDArray[Any],
    labels: Sequence[object],
    new_features: Tensor | NDArray[Any],
    new_labels: Sequence[object],
) -> float:
    """Balanced accuracy, on new images, of a logistic regression on standardised features.

    Args:
        features: (N, D), of the images to fit.
        labels: N labels.
        new_features: (M, D), of the images to score; of other patients.
        new_labels: M labels. Images of a label that the fit does not know are left out.

    Returns:
        Mean recall over the labels that are scored, chance is 1 / number of fitted labels; nan when fewer than two
        labels are fitted or scored, or a feature is not finite.
    """
    x, new_x = _array(features), _array(new_features)
    y, new_y = np.array([str(n) for n in labels]), np.array([str(n) for n in new_labels])
    known = np.isin(new_y, y)
    new_x, new_y = new_x[known], new_y[known]
    if min(len(set(y.tolist())), len(set(new_y.tolist()))) < 2 or not (
        np.isfinite(x).all() and np.isfinite(new_x).all()
    ):
        return nan
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
    predicted = model.fit(x, y).predict(new_x)
    return float(np.mean([(predicted[new_y == label] == label).mean() for label in np.unique(new_y)]))


def retrieval_accuracy(first: Tensor | NDArray[Any], second: Tensor | NDArray[Any]) -> float:
    """Share of images whose second view is the nearest to the first among the second views of all.

    Nearest by the cosine of embeddings centred on their common mean: what all images share tells none from another.

    Args:
        first: (N, D) embeddings of one view of each image.
        second: (N, D) of another view, in the same order.

    Returns:
        Between 0 and 1, chance is 1 / N; ties count as not found; nan for N < 2 or a value that is not finite.
    """
    one, other = _array(first), _array(second)
    if len(one) < 2 or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return nan
    mean = (one.mean(0) + other.mean(0)) / 2
    one, other = ((x - mean) / np.linalg.norm(x - mean, axis=1, keepdims=True).clip(1e-12) for x in (one, other))
    similarity = one @ other.T
    own = similarity.diagonal().copy()
    np.fill_diagonal(similarity, -np.inf)
    return float((own > similarity.max(axis=1)).mean())


def floor_features(
    image: Tensor | NDArray[Any], spacing_mm: Sequence[float], field_of_view_mm: Sequence[float]
) -> Floats:
    """What tells a domain without any look at anatomy: intensity histogram, voxel size and field of view.

    The probe on these features is a floor under the probe on the embeddings, another is that on embeddings of noise:
    only what lies above both was learned from the images.

    Args:
        image: (1, X, Y[, Z]), normalised as nnU-Net does; not-finite voxels do not count.
        spacing_mm: mm per voxel, one entry an axis.
        field_of_view_mm: extent of the whole image in mm, one entry an axis.

    Returns:
        (32 + 2 * axes,) shares of the voxels per bin, then log spacing, then log field of view.
    """
    voxels = _array(image)
    voxels = voxels[np.isfinite(voxels)]
    counts, _ = np.histogram(voxels.clip(HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1]), HISTOGRAM_EDGES)
    return np.concatenate([counts / max(voxels.size, 1), np.log(spacing_mm), np.log(field_of_view_mm)])


def pca_2d(h: Tensor | NDArray[Any]) -> Floats:
    """Scores (N, 2) of the embeddings (N, D) on their first two principal axes, by decreasing variance.

    The sign of an axis is such that its largest loading is positive: pictures of one run do not flip between epochs.
    Axes that do not exist (N < 3 or D < 2) are 0.
    """
    rows = _array(h)
    _, _, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    axes = axes[:2]
    axes *= np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
    scores = (rows - rows.mean(0)) @ axes.T
    return np.pad(scores, ((0, 0), (0, 2 - scores.shape[1])))


def _array(x: Tensor | NDArray[Any]) -> Floats:
    return np.asarray(x.detach().cpu().double() if isinstance(x, Tensor) else x, dtype=np.float64)
