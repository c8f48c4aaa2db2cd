"""Scores against known geometry, a slow reference and nnU-Net's own numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.spatial.distance import cdist

from hssl_nnunet.benchmark.metrics import case_scores, dice, label_values, surface_scores
from hssl_nnunet.errors import HSSLError

pytest.importorskip("monai", reason='needs pip install "hssl_nnunet[benchmark]"')
from monai.metrics.hausdorff_distance import compute_hausdorff_distance  # noqa: E402
from monai.metrics.surface_dice import compute_surface_dice  # noqa: E402

DATASET_JSON = {"labels": {"background": 0, "a": 1, "b": 2, "none": 3}, "file_ending": ".nii.gz"}


def ball(shape: tuple[int, ...], spacing: tuple[float, ...], centre_mm: tuple[float, ...], radius_mm: float):
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"), -1)
    return np.linalg.norm(grid - np.array(centre_mm), axis=-1) <= radius_mm


def write(path: Path, mask: np.ndarray, spacing: tuple[float, ...]) -> Path:
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path))
    return path


def border_hd95(truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> float:
    """95th percentile of the distances between border voxels, the larger direction: all pairs, no library."""

    def border(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inner = padded.copy()
        for axis in range(3):
            for step in (-1, 1):
                inner &= np.roll(padded, step, axis)
        return np.argwhere(padded & ~inner) * np.array(spacing)

    distances = cdist(border(truth), border(prediction))
    return max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.5)])
def test_a_shifted_ball(spacing: tuple[float, ...]) -> None:
    shape = tuple(int(24 / s) for s in spacing)
    truth, prediction = (ball(shape, spacing, (12, 12, centre), 6) for centre in (10.0, 13.0))
    nsd, hd95 = surface_scores(truth, prediction, spacing, 1.0)
    assert hd95 == pytest.approx(border_hd95(truth, prediction, spacing), abs=1e-4)
    assert 0.1 < nsd < 0.8
    assert surface_scores(truth, prediction, spacing, 4.0)[0] == pytest.approx(1.0)  # nothing is farther than the shift


def test_a_box_around_the_masks_changes_nothing() -> None:
    truth, prediction = (ball((40, 40, 40), (1, 1, 1), (20, 20, c), 5) for c in (18, 21))
    inner = (slice(10, 32),) * 3
    whole, cut = (surface_scores(truth[s], prediction[s], (1, 1, 1), 1.0) for s in ((slice(None),) * 3, inner))
    assert whole == pytest.approx(cut)


def test_a_mask_at_the_border_of_the_image_has_a_surface_there() -> None:
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[:4] = True
    assert surface_scores(mask, mask, (1, 1, 1), 0.5) == pytest.approx((1.0, 0.0))


@pytest.mark.parametrize("axis", [0, 2])
def test_a_single_slice_is_scored_by_its_contours(axis: int) -> None:
    """As nnU-Net reads a 2D image: one slice, 999 mm thick."""
    truth, prediction = (ball((40, 50), (1.0, 0.5), (20, centre), 6) for centre in (10, 13))
    flat = [torch.from_numpy(m)[None, None].float() for m in (prediction, truth)]
    nsd = compute_surface_dice(*flat, [1.0], True, spacing=[1.0, 0.5], use_subvoxels=True)
    hd95 = compute_hausdorff_distance(*flat, True, percentile=95, spacing=[1.0, 0.5])
    spacing = [1.0, 0.5]
    spacing.insert(axis, 999.0)
    found = surface_scores(np.expand_dims(truth, axis), np.expand_dims(prediction, axis), spacing, 1.0)
    assert found == pytest.approx((float(nsd), float(hd95)), abs=1e-6) and 0.1 < found[0] < 0.8 and 2 < found[1] < 4


def test_equal_and_empty_masks() -> None:
    mask, empty = ball((9, 9, 9), (1, 1, 1), (4, 4, 4), 3), np.zeros((9, 9, 9), dtype=bool)
    assert surface_scores(mask, mask, (1, 1, 1), 1.0) == pytest.approx((1.0, 0.0)) and dice(mask, mask) == 1
    for truth, prediction in ((mask, empty), (empty, mask)):
        assert surface_scores(truth, prediction, (1, 1, 1), 1.0) == (0.0, math.inf) and dice(truth, prediction) == 0
    assert all(math.isnan(v) for v in (*surface_scores(empty, empty, (1, 1, 1), 1.0), dice(empty, empty)))


def test_dice_of_a_case_is_nnunets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 3, size=(6, 7, 8)) for _ in range(2)]
    (tmp_path / "p").mkdir()
    truth = write(tmp_path / "c.nii.gz", masks[0], (2.0, 1.0, 1.0))
    prediction = write(tmp_path / "p" / "c.nii.gz", masks[1], (2.0, 1.0, 1.0))
    scores = case_scores(truth, prediction, SimpleITKIO(), DATASET_JSON, "someone", 1.0)
    expected = compute_metrics(str(truth), str(prediction), SimpleITKIO(), [1, 2, 3])["metrics"]
    assert [(s.case, s.patient, s.label) for s in scores] == [("c", "someone", n) for n in ("a", "b", "none")]
    np.testing.assert_allclose([s.dice for s in scores], [expected[v]["Dice"] for v in (1, 2, 3)])
    assert math.isnan(scores[2].dice) and math.isnan(scores[2].nsd)


def test_spacing_is_read_in_the_arrays_order(tmp_path: Path) -> None:
    mask = np.zeros((12, 12, 12))
    mask[3:8, 3:8, 3:8] = 1
    truth = write(tmp_path / "t.nii.gz", mask, (5.0, 1.0, 1.0))
    prediction = write(tmp_path / "c.nii.gz", np.roll(mask, 1, axis=0), (5.0, 1.0, 1.0))
    first = case_scores(truth, prediction, SimpleITKIO(), DATASET_JSON, "x", 1.0)[0]
    assert first.hd95_mm == pytest.approx(5.0)  # one voxel along the first axis, 5 mm apart


def test_ignored_voxels_do_not_count_and_regions_are_unions(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    truth, prediction = np.zeros((4, 4, 4)), np.zeros((4, 4, 4))
    truth[0], truth[1], truth[2] = 1, 2, 3
    prediction[0], prediction[1], prediction[2] = 1, 2, 2
    paths = [write(tmp_path / f"{n}.nii.gz", m, (1, 1, 1)) for n, m in (("t", truth), ("c", prediction))]
    dataset_json = {"labels": labels, "file_ending": ".nii.gz"}
    assert label_values(dataset_json) == {"whole": (1, 2), "core": (2,)}
    scores = case_scores(*paths, SimpleITKIO(), dataset_json, "x", 1.0)
    assert [s.dice for s in scores] == [1.0, 1.0]


def test_masks_of_different_shape_are_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.nii.gz", np.ones((n, 4, 4)), (1, 1, 1)) for n in (3, 4)]
    with pytest.raises(HSSLError, match="shape"):
        case_scores(*paths, SimpleITKIO(), DATASET_JSON, "x", 1.0)
