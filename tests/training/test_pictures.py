from math import nan

import numpy as np
import pytest
from matplotlib.image import imread

from hssl_nnunet.training.pictures import OKABE_ITO, plot_curves, plot_embeddings, plot_reconstructions


def pixels_of(path, colour):
    """Number of pixels whose colour, given as #rrggbb, is met to 2 %."""
    rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return int((np.abs(imread(path)[..., :3] - rgb).max(-1) < 0.02).sum())


def test_curves_share_a_panel_by_name_and_bridge_missing_values(tmp_path):
    train, val = [3.0, 2.0, 1.0], [3.0, nan, 2.0]
    plot_curves(tmp_path / "one.png", {"train_image": train, "val_image": val})
    plot_curves(tmp_path / "two.png", {"train_image": train, "val_image": val, "learning_rate": train})
    assert imread(tmp_path / "two.png").shape[0] > imread(tmp_path / "one.png").shape[0]
    assert pixels_of(tmp_path / "one.png", OKABE_ITO[0]) > 500
    assert pixels_of(tmp_path / "one.png", OKABE_ITO[3]) > 500  # the validation line, over the epoch it lacks


def test_curves_of_a_run_that_has_just_begun(tmp_path):
    plot_curves(tmp_path / "a.svg", {"train_total": [2.0], "val_total": [nan]})
    plot_curves(tmp_path / "b.svg", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.svg", "b.svg"]


def test_embeddings_have_a_colour_for_each_name(tmp_path):
    points = np.random.default_rng(0).normal(size=(60, 2))
    path = tmp_path / "embeddings.svg"
    plot_embeddings(path, points, [f"Dataset{i % 20:03}" for i in range(60)], ["MR", "CT", "PET"] * 20, "60 images")
    assert all(colour.lower() in path.read_text() for colour in OKABE_ITO)


@pytest.mark.parametrize("shape", [(20, 30), (3, 20, 30)])
def test_reconstructions_show_hidden_voxels_of_the_central_slice(tmp_path, shape):
    target = np.random.default_rng(0).normal(size=shape)
    masked = target.copy()
    masked[0 if len(shape) == 3 else slice(0)] = nan  # not the central slice
    plot_reconstructions(tmp_path / "shown.png", [("case", target, masked, target)])
    masked[..., :10, :] = nan
    plot_reconstructions(tmp_path / "hidden.png", [("case", target, masked, target)] * 2)
    assert pixels_of(tmp_path / "shown.png", OKABE_ITO[0]) == 0
    assert pixels_of(tmp_path / "hidden.png", OKABE_ITO[0]) > 1000
