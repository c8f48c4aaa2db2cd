from __future__ import annotations

import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform

from hssl_nnunet.data import intensity

SHAPES = [(9, 12, 10), (15, 11)]


def images(shape=(9, 12, 10), count: int = 3) -> torch.Tensor:
    return torch.randn(count, 1, *shape, generator=generator(8)) * 2 + 0.5


def everywhere(image: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(image, dtype=torch.bool)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def oracle(transforms, image: torch.Tensor) -> torch.Tensor:
    """batchgeneratorsv2 knows no batch: one transform for each image."""
    return torch.stack([t(image=one.clone())["image"] for t, one in zip(transforms, image, strict=True)])


@pytest.mark.parametrize("shape", SHAPES)
def test_brightness_is_that_of_batchgeneratorsv2(shape):
    image, factors = images(shape), [0.75, 1.0, 1.2]
    expected = oracle([MultiplicativeBrightnessTransform(f, False, 1) for f in factors], image)
    assert torch.allclose(intensity.brightness(image, torch.tensor(factors)), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_contrast_is_that_of_batchgeneratorsv2(shape):
    image, factors = images(shape), [0.75, 1.0, 1.2]
    expected = oracle([ContrastTransform(f, True, False, 1) for f in factors], image)
    assert torch.allclose(intensity.contrast(image, everywhere(image), torch.tensor(factors)), expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gamma_is_that_of_batchgeneratorsv2(shape):
    image, exponents, inverted = images(shape), [0.7, 1.0, 1.5], [1, 0, 1]
    transforms = [GammaTransform(g, i, False, 1, 1) for g, i in zip(exponents, inverted, strict=True)]
    ours = intensity.gamma(image, everywhere(image), torch.tensor(exponents), torch.tensor(inverted, dtype=torch.bool))
    assert torch.allclose(ours, oracle(transforms, image), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_blur_is_that_of_batchgeneratorsv2(shape):
    image, sigmas = images(shape), [0.93, 1.0, 1.15]  # there, kernels of seven voxels as well
    expected = oracle([GaussianBlurTransform(s, False, False, 1) for s in sigmas], image)
    ours = intensity.gaussian_blur(image, torch.tensor(sigmas)[:, None].expand(3, len(shape)))
    assert torch.allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "fine", "ignored"), [((9, 12, 10), (1, 2), (0,)), ((15, 11), (0, 1), None)])
def test_low_resolution_is_that_of_batchgeneratorsv2(shape, fine, ignored):
    image, factors = images(shape), [0.5, 0.77, 1.0]
    expected = oracle([SimulateLowResolutionTransform(f, False, True, ignored, None, 1) for f in factors], image)
    assert torch.allclose(intensity.low_resolution(image, torch.tensor(factors), fine), expected, atol=1e-5)


def test_blur_keeps_a_constant_and_spreads_a_point_along_each_axis_by_its_sigma():
    assert torch.allclose(
        intensity.gaussian_blur(torch.full((1, 1, 1, 2, 7), 3.0), torch.ones(1, 3)), torch.tensor(3.0)
    )
    point = torch.zeros(2, 1, 11, 11, 11)
    point[:, :, 5, 5, 5] = 1
    blurred = intensity.gaussian_blur(point, torch.tensor([[0.6, 0.8, 1e-3], [0.7, 0.7, 0.7]]))
    place = torch.arange(11.0) - 5
    for axis, sigma in enumerate([0.6, 0.8, 0.0]):
        profile = blurred[0, 0].sum([a for a in range(3) if a != axis])
        assert abs((profile * place**2).sum().sqrt() - sigma) < 0.05  # cut at three voxels
    assert torch.allclose(blurred.sum((1, 2, 3, 4)), torch.ones(2))


def test_noise_has_its_sigma_and_no_mean():
    image = images((40, 40, 40), 2)
    noise = intensity.gaussian_noise(image, torch.tensor([0.1, 0.0]), generator()) - image
    assert abs(noise[0].std() - 0.1) < 2e-3 and abs(noise[0].mean()) < 2e-3
    assert torch.equal(noise[1], torch.zeros_like(noise[1]))


@pytest.mark.parametrize("name", ["contrast", "gamma"])
def test_statistics_know_valid_voxels_alone(name):
    image, valid = images(), torch.zeros(3, 1, 9, 12, 10, dtype=torch.bool)
    valid[:, :, 2:7, :, 3:] = True
    parameters = [torch.tensor([0.8, 1.2, 1.4])] + ([torch.tensor([True, False, True])] if name == "gamma" else [])
    transform = getattr(intensity, name)
    part = image[:, :, 2:7, :, 3:]
    spoilt = torch.where(valid, image, torch.full_like(image, 1000.0))
    expected = transform(part, everywhere(part), *parameters)
    assert torch.allclose(transform(spoilt, valid, *parameters)[:, :, 2:7, :, 3:], expected, atol=1e-5)
    assert torch.isfinite(transform(spoilt, valid, *parameters)).all()


def test_gamma_keeps_mean_and_deviation():
    image = images()
    result = intensity.gamma(image, everywhere(image), torch.full((3,), 1.5), torch.tensor([True, False, True]))
    assert not torch.allclose(result, image, atol=1e-2)
    assert torch.allclose(result.mean((1, 2, 3, 4)), image.mean((1, 2, 3, 4)), atol=1e-5)
    assert torch.allclose(result.flatten(1).std(1), image.flatten(1).std(1), atol=1e-4)


def augment(image, probability, seed=0, valid=None):
    valid = everywhere(image) if valid is None else valid
    return intensity.augment_intensity(
        image, valid, probability=probability, fine_axes=(0, 1, 2), generator=generator(seed)
    )


def test_probability_zero_changes_nothing_and_one_every_image():
    image = images(count=6)
    before = image.clone()
    assert torch.equal(augment(image, 0.0), image)
    assert ((augment(image, 1.0) - image).abs().flatten(1).amax(1) > 1e-3).all()
    assert torch.equal(image, before)


def test_each_transform_meets_its_share_of_images(monkeypatch):
    met = []
    monkeypatch.setattr(intensity, "TRANSFORMS", [lambda x, v, f, g: met.append(len(x)) or x + 1] * 6)
    result = augment(torch.zeros(2000, 1, 1, 1, 1), 0.3)
    assert len(met) == 6 and all(abs(n - 600) < 103 for n in met)  # five standard errors
    assert result.sum() == sum(met)


def test_images_get_parameters_of_their_own():
    image = images(count=1).expand(6, -1, -1, -1, -1)
    result = augment(image, 1.0)
    assert all(not torch.allclose(result[0], other, atol=1e-3) for other in result[1:])


def test_constant_and_invalid_images_stay_finite():
    constant = torch.full((4, 1, 6, 6, 6), 2.0)
    assert torch.isfinite(augment(constant, 1.0)).all()
    assert torch.isfinite(augment(images(count=4), 1.0, valid=torch.zeros(4, 1, 9, 12, 10, dtype=torch.bool))).all()


def test_parameters_have_the_distribution_of_nnunet():
    ours = intensity._around_one((0.7, 1.5), 20000, generator()).sort().values
    draw = BGContrast((0.7, 1.5))
    theirs = torch.tensor([draw() for _ in range(20000)]).sort().values
    assert (ours - theirs).abs().max() < 0.03


def test_a_quarter_of_the_gammas_work_on_the_inverted_image(monkeypatch):
    inverted = []
    monkeypatch.setattr(intensity, "gamma", lambda x, valid, exponent, invert: inverted.append(invert) or x)
    augment(torch.zeros(4000, 1, 1, 1, 1), 1.0)
    assert abs(inverted[0].float().mean() - 0.25) < 0.035  # five standard errors
