from math import sqrt

import pytest
import torch

from hssl_nnunet.losses.reconstruction import STD_FLOOR, Reconstruction, reconstruction_error, standardised


def chunk(images=3, size=(3, 4, 5), dtype=torch.float64):
    shape = (images, 1, *size)
    prediction, target = torch.randn(2, *shape, dtype=dtype)
    return Reconstruction(prediction, 30 * target + 100, torch.rand(shape) < 0.6, torch.rand(shape) < 0.8)


def error_loop(chunks, counted):
    values = []
    for r in chunks:
        for prediction, target, hidden, valid in zip(r.prediction, r.target, r.hidden, r.valid, strict=True):
            inside = target[valid].tolist()
            mean = sum(inside) / max(len(inside), 1)
            std = max(sqrt(sum((t - mean) ** 2 for t in inside) / max(len(inside), 1)), STD_FLOOR)
            voxels = zip(*(x.flatten().tolist() for x in (prediction, target, hidden, valid)), strict=True)
            errors = [(p - (t - mean) / std) ** 2 for p, t, h, v in voxels if v and (h or counted == "full")]
            if errors:
                values.append(sum(errors) / len(errors))
    return sum(values) / len(values)


@pytest.mark.parametrize("counted", ["masked", "full"])
def test_is_the_loop_over_its_definition(counted):
    chunks = [chunk(), chunk(2, (6, 2, 2)), chunk(1, (4, 4))]
    chunks[0].hidden[1] = False  # an image of which nothing was hidden: left out of "masked"
    chunks[1].valid[0] = False  # nothing but padding: left out of both
    assert float(reconstruction_error(chunks, counted)) == pytest.approx(error_loop(chunks, counted), rel=1e-10)


def test_padding_and_what_was_shown_touch_neither_value_nor_gradient():
    r = chunk()
    ignored = ~(r.hidden & r.valid)
    before = reconstruction_error([r], "masked")
    prediction = r.prediction.masked_fill(ignored, torch.inf).requires_grad_()
    target = r.target.masked_fill(~r.valid, 1e30)
    after = reconstruction_error([Reconstruction(prediction, target, r.hidden, r.valid)], "masked")
    after.backward()
    torch.testing.assert_close(after, before)
    assert torch.equal(prediction.grad == 0, ignored)


@pytest.mark.parametrize("counted", ["masked", "full"])
def test_scale_and_offset_of_intensities_do_not_matter(counted):
    r = chunk()
    factor = torch.tensor([1.0, 1000.0, 0.01], dtype=torch.float64).view(3, 1, 1, 1, 1)
    other = Reconstruction(r.prediction, factor * r.target - 7 * factor, r.hidden, r.valid)
    torch.testing.assert_close(reconstruction_error([other], counted), reconstruction_error([r], counted))


def test_perfect_and_mean_predictions():
    r = chunk()
    perfect = Reconstruction(standardised(r.target, r.valid), r.target, r.hidden, r.valid)
    assert float(reconstruction_error([perfect], "full")) == 0
    nothing = Reconstruction(torch.zeros_like(r.target), r.target, r.hidden, r.valid)
    assert float(reconstruction_error([nothing], "full")) == pytest.approx(1)


def test_standardised_has_mean_0_and_std_1_over_valid_voxels():
    r = chunk()
    image = standardised(r.target, r.valid)
    for one, valid in zip(image, r.valid, strict=True):
        assert float(one[valid].mean()) == pytest.approx(0, abs=1e-12)
        assert float(one[valid].std(correction=0)) == pytest.approx(1)
        assert (one[~valid] == 0).all()


def test_constant_image_stays_finite_and_faint_noise_stays_small():
    valid = torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)
    assert torch.equal(standardised(torch.full(valid.shape, 5.0), valid), torch.zeros(valid.shape))
    assert standardised(1e-4 * torch.randn(valid.shape), valid).abs().max() < 0.1


def test_splitting_into_chunks_and_order_do_not_matter():
    r = chunk(4)
    parts = [Reconstruction(*(getattr(r, f)[i] for f in Reconstruction.__slots__)) for i in ([2, 0], [3], [1])]
    torch.testing.assert_close(reconstruction_error(parts, "masked"), reconstruction_error([r], "masked"))


@pytest.mark.parametrize("counted", ["masked", "full"])
def test_no_counted_voxel_gives_zero_with_a_graph(counted):
    prediction = torch.randn(2, 1, 3, 3, requires_grad=True)
    nothing = torch.zeros(prediction.shape, dtype=torch.bool)
    loss = reconstruction_error([Reconstruction(prediction, torch.randn(2, 1, 3, 3), nothing, nothing)], counted)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


@pytest.mark.parametrize("counted", ["masked", "full"])
def test_gradient(counted):
    r = chunk(2, (2, 3, 2))
    prediction = r.prediction.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: reconstruction_error([Reconstruction(x, r.target, r.hidden, r.valid)], counted), prediction
    )


def test_half_precision_is_computed_in_float32():
    r = chunk(dtype=torch.float32)
    half = Reconstruction(r.prediction.bfloat16(), r.target.bfloat16(), r.hidden, r.valid)
    full = Reconstruction(half.prediction.float(), half.target.float(), r.hidden, r.valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = reconstruction_error([half], "masked")
    assert value.dtype == torch.float32
    assert torch.equal(value, reconstruction_error([full], "masked"))
