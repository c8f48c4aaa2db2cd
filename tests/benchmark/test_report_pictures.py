"""The pictures of a benchmark's page: which cases are shown, where they are cut, what is outlined."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread
from tiny_benchmark import DATASETS, Page, chosen, plain_slice, volumes

from hssl_nnunet.benchmark.report.cases import choose, draw_slice, read_slice


def test_the_cases_are_shown_or_said_to_be_missing(folder: Path, page: Page) -> None:
    worst, median, best = (c.case for c in chosen(folder))
    shown = page.sections["cases"]
    assert f"runs/{DATASETS[0]}/5%/hssl/seed_0/predictions/{worst}.nii.gz is missing" in shown
    assert str(folder) not in shown
    alts = [a["alt"] for tag, a in page.tags if tag == "img" and "contours" in a["alt"]]
    wanted = [(case, arm) for case in (median, best) for arm in ("hssl", "vanilla")]
    assert [(a.split(",")[0], a.split("of ")[-1].split(",")[0]) for a in alts] == wanted
    assert all("coronal slice 11 of 24" in a for a in alts)
    assert shown.count("cases.json does not name this case") == 3  # of the other dataset
    assert sum(a["alt"].startswith("Embedding") for tag, a in page.tags if tag == "img") == 1  # the broken one is not


@pytest.mark.parametrize("seed", range(20))
def test_worst_median_and_best_agree_with_a_slow_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 9))
    first, second = ({f"c{i}": float(rng.integers(0, 4)) / 4 for i in rng.permutation(count)} for _ in range(2))
    shared = sorted(first)
    by_difference: list[str] = []
    while left := [c for c in shared if c not in by_difference]:  # selection sort; equals by name
        by_difference.append(min(left, key=lambda c: first[c] - second[c]))
    highest = max(first[c] - second[c] for c in shared)
    best = next(c for c in shared if first[c] - second[c] == highest)
    found = {c.rank: c.case for c in choose(first, second)}
    assert found["worst"] == by_difference[0]
    assert found.get("best", by_difference[0]) == best
    median = by_difference[(len(shared) - 1) // 2]
    assert found.get("median", median) == median
    assert len(set(found.values())) == len(found)


def test_few_cases_are_each_named_once() -> None:
    assert [(c.rank, c.case) for c in choose({"a": 0.5}, {"a": 0.5})] == [("worst", "a")]
    pairs = choose({"a": 0.5, "b": 0.9}, {"a": 0.5, "b": 0.5})
    assert [(c.rank, c.case, c.first, c.second) for c in pairs] == [("worst", "a", 0.5, 0.5), ("best", "b", 0.9, 0.5)]


def test_a_slice_is_cut_where_the_truth_is_and_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.nii.gz" for name in ("image", "truth", "first", "second")]
    for image, path in zip(volumes(), paths, strict=True):
        sitk.WriteImage(image, str(path))
    shown = read_slice(*paths)
    assert shown.where == "coronal slice 11 of 24" and shown.aspect == 1.0
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(paths[1])))[:, 10]
    assert sorted(shown.masks[0][shown.masks[0] > 0]) == sorted(truth[truth > 0])
    assert shown.masks[0].shape == shown.image.shape == shown.masks[2].shape
    sitk.WriteImage(volumes()[0][:, :20, :], str(paths[3]))
    with pytest.raises(ValueError, match=r"truth.nii.gz differ in shape"):
        read_slice(*paths)
    paths[2].write_text("no image")
    with pytest.raises(ValueError, match=r"first.nii.gz cannot be read"):
        read_slice(*paths)
    paths[2].unlink()
    with pytest.raises(ValueError, match=r"first.nii.gz is missing"):
        read_slice(*paths)


@pytest.mark.parametrize("prediction, columns", [(1, (25, 35)), (2, (45, 55))])
def test_a_picture_outlines_the_truth_and_the_prediction_that_was_asked_for(
    prediction: int, columns: tuple[int, int]
) -> None:
    pixels = imread(BytesIO(draw_slice(plain_slice(), prediction=prediction)))[..., :3]
    voxel = pixels.shape[1] / 60
    painted = np.flatnonzero((pixels.max(-1) - pixels.min(-1) > 0.2).any(0)) / voxel
    low, high = columns
    assert (painted < 16).any() and ((painted > low - 1) & (painted < high + 1)).any()  # truth, prediction
    assert ((painted < 16) | ((painted > low - 1) & (painted < high + 1))).all()  # and nothing else
