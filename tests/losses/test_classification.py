from math import exp, log

import pytest
import torch

from hssl_nnunet.losses.classification import classification

LABEL = torch.tensor([2, 0, 1, 1])


def test_is_the_loop_over_its_equation():
    logits = torch.randn(2, 4, 3, dtype=torch.float64)
    values = [
        -log(exp(float(logits[v, n, LABEL[n]])) / sum(exp(float(k)) for k in logits[v, n]))
        for v in range(2)
        for n in range(4)
    ]
    assert float(classification(logits, LABEL)) == pytest.approx(sum(values) / 8, rel=1e-12)


def test_equal_logits_cost_the_log_of_the_number_of_classes():
    assert float(classification(torch.full((2, 4, 3), 5.0), LABEL)) == pytest.approx(log(3))


def test_sure_and_right_costs_nothing_sure_and_wrong_costs_the_margin():
    right = 100 * torch.nn.functional.one_hot(LABEL, 3).float().expand(2, 4, 3)
    assert float(classification(right, LABEL)) == 0
    assert float(classification(right, (LABEL + 1) % 3)) == pytest.approx(100)


def test_order_of_images_and_views_does_not_matter():
    logits, order = torch.randn(2, 4, 3), torch.randperm(4)
    before = classification(logits, LABEL)
    torch.testing.assert_close(classification(logits[:, order], LABEL[order]), before)
    torch.testing.assert_close(classification(logits.flip(0), LABEL), before)


def test_gradient():
    logits = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: classification(x, LABEL), logits)


def test_half_precision_logits_are_computed_in_float32():
    logits = torch.randn(2, 4, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = classification(logits, LABEL)
    assert value.dtype == torch.float32
    assert torch.equal(value, classification(logits.float(), LABEL))
