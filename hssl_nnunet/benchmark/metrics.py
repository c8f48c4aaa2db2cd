"""Scores of a predicted mask, by libraries: Dice as nnU-Net computes it, surface metrics as MONAI does.

NSD is the normalised surface Dice with sub-voxel surfaces (MONAI, `use_subvoxels=True`, equal to DeepMind's
surface-distance); HD95 the 95th percentile of the Hausdorff distance between border voxels, the larger of both
directions. A label that is empty in truth and prediction scores nan; one that is empty in one of them has Dice 0, NSD 0
and HD95 inf.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray
from scipy import ndimage

from hssl_nnunet.benchmark.records import CaseScore
from hssl_nnunet.errors import HSSLError

Label = int | tuple[int, ...]


def label_values(dataset_json: Mapping[str, Any]) -> dict[str, Label]:
    """Foreground labels or regions of a dataset, by name; the ignore label is none of them."""
    values = {name: tuple(v) if isinstance(v, list) else int(v) for name, v in dataset_json["labels"].items()}
    return {name: v for name, v in values.items() if name not in ("background", "ignore") and v != 0}


def case_scores(
    truth: Path,
    prediction: Path,
    reader: BaseReaderWriter,
    dataset_json: Mapping[str, Any],
    patient: str,
    nsd_tolerance_mm: float,
) -> list[CaseScore]:
    """Scores of every label of one case.

    Args:
        truth: the mask.
        prediction: the predicted mask, in the same voxels.
        reader: nnU-Net's reader of both; it tells the spacing.
        dataset_json: labels of the dataset; voxels of the `ignore` label do not count.
        patient: whom the case shows.
        nsd_tolerance_mm: distance in mm up to which a surface counts as met.

    Raises:
        HSSLError: the two masks differ in shape.
    """
    reference, properties = reader.read_seg(str(truth))
    predicted, _ = reader.read_seg(str(prediction))
    if reference.shape != predicted.shape:
        raise HSSLError(f"{prediction} has shape {predicted.shape[1:]}, {truth} has {reference.shape[1:]}.")
    ignore = dataset_json["labels"].get("ignore")
    counted = np.ones_like(reference, dtype=bool) if ignore is None else reference != ignore
    spacing = [float(s) for s in properties["spacing"]]
    case = prediction.name.removesuffix(dataset_json["file_ending"])
    scores = []
    for name, value in label_values(dataset_json).items():
        masks = [region_or_label_to_mask(m, value) & counted for m in (reference, predicted)]
        nsd, hd95 = surface_scores(masks[0][0], masks[1][0], spacing, nsd_tolerance_mm)
        scores.append(
            CaseScore(case=case, patient=patient, label=name, dice=dice(masks[0], masks[1]), nsd=nsd, hd95_mm=hd95)
        )
    return scores


def dice(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float:
    """Dice of two masks, from nnU-Net's counts."""
    tp, fp, fn, _ = compute_tp_fp_fn_tn(truth, prediction)
    return float(2 * tp / (2 * tp + fp + fn)) if tp + fp + fn else math.nan


def surface_scores(
    truth: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: Sequence[float], tolerance_mm: float
) -> tuple[float, float]:
    """NSD and HD95 of two masks `(X, Y, Z)`.

    An axis of one voxel, as of a 2D image, has no surface across it: contours within the slice are compared.

    Args:
        truth: the mask.
        prediction: the predicted mask, of the same shape.
        spacing: mm per voxel.
        tolerance_mm: distance in mm up to which a surface counts as met.
    """
    if not truth.any() and not prediction.any():
        return math.nan, math.nan
    if not truth.any() or not prediction.any():
        return 0.0, math.inf
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    flat = [axis for axis, size in enumerate(truth.shape) if size == 1][: truth.ndim - 2]  # MONAI takes 2D and 3D
    truth, prediction = (m.squeeze(tuple(flat)) for m in (truth, prediction))
    box, mm = _bounding_box(truth | prediction), [s for axis, s in enumerate(spacing) if axis not in flat]
    predicted, true = (torch.from_numpy(m[box])[None, None].float() for m in (prediction, truth))  # (1, 1, X, Y[, Z])
    nsd = compute_surface_dice(predicted, true, [tolerance_mm], True, spacing=mm, use_subvoxels=True)
    hd95 = compute_hausdorff_distance(predicted, true, True, percentile=95, spacing=mm)
    return float(nsd), float(hd95)


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Smallest box around a mask, and one voxel more, so that surfaces at its border are closed."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(slice(max(0, axis.start - 1), axis.stop + 1) for axis in box)
