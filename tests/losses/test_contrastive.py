from math import exp, log

import pytest
import torch
from torch.nn.functional import normalize

from hssl_nnunet.losses.contrastive import nt_xent, supervised_contrast

TASK = torch.tensor([0, 0, 1, 2, 1, 0])
IMAGE = torch.arange(6)
NEGATIVES = ("all", "same_task", "other_task")


def embeddings(images=6, width=5, views=2, dtype=torch.float64):
    return normalize(torch.randn(views, images, width, dtype=dtype), dim=-1)


def nt_xent_loop(z, image, task, tau, negatives):
    values = []
    for v in range(2):
        for i in range(z.shape[1]):
            positive = exp(float(z[v, i] @ z[1 - v, i]) / tau)
            total = positive
            for w in range(2):
                for k in range(z.shape[1]):
                    same = task[k] == task[i]
                    allowed = {"all": True, "same_task": same, "other_task": not same}[negatives]
                    if image[k] != image[i] and allowed:
                        total += exp(float(z[v, i] @ z[w, k]) / tau)
            values.append(-log(positive / total))
    return sum(values) / len(values)


def supervised_loop(z, label, tau):
    rows = [(z[v, i], int(label[i])) for v in range(len(z)) for i in range(z.shape[1])]
    values = []
    for i, (anchor, own) in enumerate(rows):
        positives = [p for p, (_, other) in enumerate(rows) if p != i and other == own]
        if positives:
            total = sum(exp(float(anchor @ rows[a][0]) / tau) for a in range(len(rows)) if a != i)
            logs = [log(exp(float(anchor @ rows[p][0]) / tau) / total) for p in positives]
            values.append(-sum(logs) / len(positives))
    return sum(values) / len(values)


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_nt_xent_is_the_loop_over_its_equation(negatives, tau):
    z = embeddings()
    expected = nt_xent_loop(z, IMAGE, TASK, tau, negatives)
    assert float(nt_xent(z, IMAGE, TASK, tau, negatives)) == pytest.approx(expected, rel=1e-10)


def test_an_image_drawn_twice_is_not_its_own_negative():
    z, image = embeddings(), torch.tensor([7, 3, 7, 1, 0, 2])
    expected = nt_xent_loop(z, image, TASK, 0.5, "all")
    assert float(nt_xent(z, image, TASK, 0.5, "all")) == pytest.approx(expected, rel=1e-10)
    assert expected < nt_xent_loop(z, IMAGE, TASK, 0.5, "all")


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_supervised_contrast_is_the_loop_over_its_equation(views, tau):
    z = embeddings(views=views)  # with one view, task 2 is an anchor without a positive
    assert float(supervised_contrast(z, TASK, tau)) == pytest.approx(supervised_loop(z, TASK, tau), rel=1e-10)


def test_nt_xent_equals_lightly():
    lightly = pytest.importorskip("lightly.loss")
    z = embeddings(dtype=torch.float32)
    expected = lightly.NTXentLoss(temperature=0.2)(z[0], z[1])
    torch.testing.assert_close(nt_xent(z, IMAGE, TASK, 0.2, "all"), expected)


def test_nt_xent_equals_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z = embeddings(dtype=torch.float32)
    expected = losses.NTXentLoss(temperature=0.2)(z.flatten(0, 1), IMAGE.repeat(2))
    torch.testing.assert_close(nt_xent(z, IMAGE, TASK, 0.2, "all"), expected)


def test_supervised_contrast_equals_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z = embeddings(dtype=torch.float32)
    expected = losses.SupConLoss(temperature=0.2)(z.flatten(0, 1), TASK.repeat(2))
    torch.testing.assert_close(supervised_contrast(z, TASK, 0.2), expected)


def test_supervised_contrast_of_one_image_a_label_is_nt_xent():
    z = embeddings()
    torch.testing.assert_close(supervised_contrast(z, IMAGE, 0.4), nt_xent(z, IMAGE, TASK, 0.4, "all"))


def test_identical_embeddings_cost_the_log_of_the_number_of_candidates():
    z = normalize(torch.ones(2, 6, 4, dtype=torch.float64), dim=-1)
    assert float(nt_xent(z, IMAGE, TASK, 0.5, "all")) == pytest.approx(log(11))
    assert float(supervised_contrast(z, TASK, 0.5)) == pytest.approx(log(11))


def test_aligned_views_of_orthogonal_images_cost_nothing_when_cold():
    z = torch.eye(6).expand(2, 6, 6)
    assert float(nt_xent(z, IMAGE, TASK, 0.01, "all")) < 1e-6
    assert float(supervised_contrast(z, IMAGE, 0.01)) < 1e-6
    assert float(nt_xent(torch.stack([z[0], z[0].roll(1, 0)]), IMAGE, TASK, 0.01, "all")) > 50


@pytest.mark.parametrize(
    ("negatives", "task"), [("same_task", IMAGE), ("other_task", torch.zeros(6, dtype=torch.long))]
)
def test_anchors_without_negatives_cost_nothing(negatives, task):
    z = embeddings().requires_grad_()
    loss = nt_xent(z, IMAGE, task, 0.5, negatives)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert z.grad.abs().max() < 1e-12


@pytest.mark.parametrize("images", [1, 6])
def test_no_positive_gives_zero_with_a_graph(images):
    z = embeddings(images, views=1).requires_grad_()
    loss = supervised_contrast(z, IMAGE[:images], 0.5)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_order_of_images_and_views_does_not_matter(negatives):
    z, order = embeddings(), torch.randperm(6)
    before = nt_xent(z, IMAGE, TASK, 0.5, negatives)
    torch.testing.assert_close(nt_xent(z[:, order], IMAGE[order], TASK[order], 0.5, negatives), before)
    torch.testing.assert_close(nt_xent(z.flip(0), IMAGE, TASK, 0.5, negatives), before)
    before = supervised_contrast(z, TASK, 0.5)
    torch.testing.assert_close(supervised_contrast(z[:, order], TASK[order], 0.5), before)
    torch.testing.assert_close(supervised_contrast(z.flip(0), TASK, 0.5), before)


def test_negatives_move_only_what_they_should():
    z = embeddings()
    moved = z.clone()
    moved[:, 3] = embeddings(images=1)[:, 0]  # the only image of task 2
    anchors_of_others = IMAGE[TASK != 2]
    before = nt_xent(z[:, anchors_of_others], anchors_of_others, TASK[anchors_of_others], 0.5, "same_task")
    # image 3 has no same-task negative and is nobody's: its two anchors are 0, the other ten keep their value
    torch.testing.assert_close(nt_xent(moved, IMAGE, TASK, 0.5, "same_task"), before * 10 / 12)
    assert nt_xent(moved, IMAGE, TASK, 0.5, "other_task") != nt_xent(z, IMAGE, TASK, 0.5, "other_task")


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_gradient_of_nt_xent(negatives):
    z = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: nt_xent(x, IMAGE[:4], TASK[:4], 0.7, negatives), z)


def test_gradient_of_supervised_contrast():
    z = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: supervised_contrast(x, TASK[:4], 0.7), z)


def test_autocast_does_not_lower_the_precision():
    z = embeddings(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = nt_xent(z, IMAGE, TASK, 0.05, "all"), supervised_contrast(z, TASK, 0.05)
        half = nt_xent(z.bfloat16(), IMAGE, TASK, 0.05, "all")
    assert torch.equal(under[0], nt_xent(z, IMAGE, TASK, 0.05, "all"))
    assert torch.equal(under[1], supervised_contrast(z, TASK, 0.05))
    assert torch.equal(half, nt_xent(z.bfloat16().float(), IMAGE, TASK, 0.05, "all"))
    assert half.dtype == torch.float32
