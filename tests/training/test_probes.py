from math import isnan, nan

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hssl_nnunet.training.probes import (
    effective_rank,
    floor_features,
    linear_probe_accuracy,
    pca_2d,
    retrieval_accuracy,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def clusters(rng, labels, distance):
    centres = distance * np.random.default_rng(1).normal(size=(len(set(labels)), 8))  # the same in every call
    return centres[labels] + rng.normal(size=(len(labels), 8))


def test_images_arefound_again_by_their_own_view_alone(rng):
    images, noise = rng.normal(size=(30, 16)), rng.normal(size=(30, 16))
    assert retrieval_accuracy(images, images + 0.1 * noise) == 1
    assert retrieval_accuracy(1000 + images, 1000 + images) == 1  # what is common to all does not count
    shuffled = retrieval_accuracy(images, np.roll(images, 1, axis=0))
    assert shuffled == 0
    assert 0 <= retrieval_accuracy(images, noise) < 0.3  # chance is 1 in 30
    assert retrieval_accuracy(np.ones((5, 3)), np.ones((5, 3))) == 0  # a collapse finds none
    assert isnan(retrieval_accuracy(images[:1], images[:1])) and isnan(retrieval_accuracy(images, images * nan))


def test_effective_rank_of_known_spectra(rng):
    round_cloud = np.concatenate([np.eye(6), -np.eye(6)])
    assert effective_rank(round_cloud) == pytest.approx(6)
    assert effective_rank(np.outer(rng.normal(size=20), rng.normal(size=6))) == pytest.approx(1, abs=1e-6)
    stretched = np.concatenate([np.diag([3.0, 1.0]), -np.diag([3.0, 1.0])])  # p = 3/4, 1/4
    assert effective_rank(stretched) == pytest.approx((4 / 3) ** 0.75 * 4**0.25)


def test_effective_rank_ignores_offset_scale_and_rotation(rng):
    h = rng.normal(size=(30, 5)) * [5, 3, 1, 1, 0.1]
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    assert effective_rank(7 * h @ rotation + 100) == pytest.approx(effective_rank(h))


def test_effective_rank_of_collapse_and_of_broken_values(rng):
    row = rng.normal(size=8).astype(np.float32)
    collapsed = torch.from_numpy(np.tile(row, (10, 1)) * (1 + 1e-8 * rng.normal(size=(10, 1)))).float()
    assert effective_rank(collapsed) == 0
    assert isnan(effective_rank(np.array([[1.0, nan], [0, 1]])))
    assert isnan(effective_rank(np.empty((0, 3))))


def test_probe_reads_what_is_there_and_nothing_else(rng):
    labels, new_labels = np.repeat([0, 1, 2], 30), np.repeat([0, 1, 2], 20)
    assert linear_probe_accuracy(clusters(rng, labels, 6), labels, clusters(rng, new_labels, 6), new_labels) > 0.97
    noise = rng.normal(size=(150, 8))
    assert linear_probe_accuracy(noise[:90], labels, noise[90:], new_labels) == pytest.approx(1 / 3, abs=0.2)


def test_probe_counts_labels_alike(rng):
    labels = np.array([0] * 80 + [1] * 20)
    zeros = np.zeros((100, 2))
    assert linear_probe_accuracy(zeros, labels, zeros, labels) == pytest.approx(0.5)


def test_probe_equals_balanced_accuracy(rng):
    labels = np.repeat([0, 1, 2], [40, 25, 10])
    x, new_x = clusters(rng, labels, 1), clusters(rng, labels, 1)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced")).fit(x, labels)
    expected = balanced_accuracy_score(labels, model.predict(new_x))
    assert linear_probe_accuracy(x, labels, new_x, labels) == pytest.approx(expected)


def test_probe_takes_names_and_half_precision_tensors(rng):
    labels = np.repeat([0, 1], 20)
    features = torch.from_numpy(clusters(rng, labels, 6)).bfloat16()
    names = [f"Dataset{n}" for n in labels]
    assert linear_probe_accuracy(features, names, features, names) > 0.95


def test_new_labels_that_were_not_fitted_are_left_out(rng):
    labels = np.repeat([0, 1, 2], 10)
    x = clusters(rng, labels, 6)
    expected = linear_probe_accuracy(x[:20], labels[:20], x[:20], labels[:20])
    assert linear_probe_accuracy(x[:20], labels[:20], x, labels) == pytest.approx(expected)


@pytest.mark.parametrize(("labels", "new_labels"), [([0, 0], [0, 1]), ([0, 1], [1, 1]), ([], []), ([0, 1], [])])
def test_probe_is_nan_where_it_cannot_be_done(labels, new_labels):
    assert isnan(linear_probe_accuracy(np.zeros((len(labels), 3)), labels, np.zeros((len(new_labels), 3)), new_labels))


def test_probe_is_nan_for_broken_features():
    broken = np.full((8, 2), nan)
    assert isnan(linear_probe_accuracy(broken, [0, 1] * 4, broken, [0, 1] * 4))


def test_floor_features_hold_intensity_and_geometry_only(rng):
    image = rng.normal(size=(1, 6, 7, 8))
    shuffled = rng.permutation(image.ravel()).reshape(image.shape)
    features = floor_features(image, (3, 1, 1), (90, 200, 200))
    np.testing.assert_allclose(features, floor_features(shuffled, (3, 1, 1), (90, 200, 200)))
    assert features[:32].sum() == pytest.approx(1)
    np.testing.assert_allclose(np.exp(features[32:]), [3, 1, 1, 90, 200, 200])
    brighter = floor_features(image + 1, (3, 1, 1), (90, 200, 200))
    np.testing.assert_allclose(brighter[5:31], features[1:27], atol=1e-12)  # 4 bins of 0.25 up
    assert floor_features(np.full((1, 4, 4), 1e9), (1, 1), (4, 4))[31] == 1
    assert np.isfinite(floor_features(np.full((1, 4, 4), nan), (1, 1), (4, 4))).all()


def test_pca_keeps_the_plane_with_most_variance(rng):
    from sklearn.decomposition import PCA

    h = rng.normal(size=(40, 6)) * [9, 5, 1, 1, 1, 1] + 50
    points = pca_2d(torch.from_numpy(h))
    np.testing.assert_allclose(np.abs(points), np.abs(PCA(2).fit_transform(h)), atol=1e-8)
    # a few more images of the same kind turn the axes a little but do not flip them
    np.testing.assert_allclose(pca_2d(h[:35]), points[:35], atol=3)


def test_pca_of_too_little_is_padded():
    assert np.array_equal(pca_2d(np.ones((1, 4))), np.zeros((1, 2)))
    np.testing.assert_allclose(pca_2d(np.array([[0.0], [2.0]])), [[-1, 0], [1, 0]])
