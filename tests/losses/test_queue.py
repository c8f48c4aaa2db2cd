"""Negatives of earlier steps: which they are, and that no gradient reaches them."""

from dataclasses import replace
from math import exp, log

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from hssl_nnunet.losses.contrastive import nt_xent
from hssl_nnunet.losses.hierarchical import Labels, Outputs, hierarchical_loss
from hssl_nnunet.losses.queue import EMPTY, NegativeQueue

DOMAINS, WIDTH, TAU = 3, 5, 0.4
TASK = torch.tensor([0, 0, 1, 2, 1, 0])
IMAGE = torch.tensor([10, 11, 20, 30, 21, 12])


def embeddings(images=6, dtype=torch.float32):
    return normalize(torch.randn(2, images, WIDTH, dtype=dtype), dim=-1)


def filled(length=4, steps=3):
    """A queue after some steps, and the rows it must hold for each domain, newest step first."""
    queue, rows = NegativeQueue(DOMAINS, length, WIDTH), {domain: [] for domain in range(DOMAINS)}
    for step in range(steps):
        z, image = embeddings(), IMAGE + step  # later steps show neighbours: some are images of this one
        queue.push(z, image, TASK)
        for domain in range(DOMAINS):
            new = [(z[v, i], int(image[i])) for i in range(6) if TASK[i] == domain for v in range(2)]
            rows[domain] = (new + rows[domain])[:length]
    return queue, rows


def test_each_domain_keeps_its_own_last_embeddings():
    queue, rows = filled(length=5, steps=4)
    assert [len(rows[domain]) for domain in range(DOMAINS)] == [5, 5, 5]
    z, image, task = queue.entries()
    for domain in range(DOMAINS):
        torch.testing.assert_close(z[task == domain], torch.stack([row for row, _ in rows[domain]]), rtol=0, atol=0)
        assert image[task == domain].tolist() == [name for _, name in rows[domain]]


@pytest.mark.parametrize("negatives", ["all", "same_task", "other_task"])
def test_nt_xent_with_a_queue_is_the_loop_over_its_equation(negatives):
    queue, rows = filled(length=7, steps=2)  # domain 2 has four embeddings and three empty places
    assert (queue.image == EMPTY).sum() == 3
    z, values = embeddings(), []
    for v in range(2):
        for i in range(6):
            candidates = [(z[w, k], int(IMAGE[k]), int(TASK[k])) for w in range(2) for k in range(6)]
            candidates += [(row, name, domain) for domain in range(DOMAINS) for row, name in rows[domain]]
            positive = total = exp(float(z[v, i] @ z[1 - v, i]) / TAU)
            for row, name, domain in candidates:
                same = domain == TASK[i]
                if name != IMAGE[i] and {"all": True, "same_task": same, "other_task": not same}[negatives]:
                    total += exp(float(z[v, i] @ row) / TAU)
            values.append(-log(positive / total))
    loss = nt_xent(z, IMAGE, TASK, TAU, negatives, queue)
    assert float(loss) == pytest.approx(sum(values) / 12, rel=1e-5)
    assert loss > nt_xent(z, IMAGE, TASK, TAU, negatives)


def test_a_broken_step_leaves_nothing_in_the_queue():
    """Nor does it cost what it would have pushed out for ever: the gradient of later steps is finite."""
    queue, _ = filled(length=7, steps=2)
    broken = embeddings()
    broken[0, 3, 1] = float("nan")  # one number of the row is enough
    queue.push(broken, IMAGE, TASK)
    assert queue.z.isfinite().all()
    assert (queue.image[2] == EMPTY).sum() == 2  # one row of image 30, and the place that was empty before
    z = embeddings().requires_grad_()
    nt_xent(z, IMAGE, TASK, TAU, "all", queue).backward()
    assert z.grad.isfinite().all()


def test_an_empty_queue_changes_nothing():
    z = embeddings()
    queue = NegativeQueue(DOMAINS, 8, WIDTH)
    for negatives in ("all", "same_task", "other_task"):
        assert torch.equal(nt_xent(z, IMAGE, TASK, TAU, negatives, queue), nt_xent(z, IMAGE, TASK, TAU, negatives))


def test_gradient_reaches_the_step_and_not_the_queue():
    queue, _ = filled()
    z = embeddings(dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: nt_xent(x, IMAGE, TASK, TAU, "all", queue), z)
    queue.push(z, IMAGE, TASK)
    assert not queue.z.requires_grad and queue.z.dtype == torch.float32


def test_pushing_before_the_backward_pass_leaves_the_gradient_alone():
    gradients = []
    for early in (False, True):
        torch.manual_seed(1)
        queue, _ = filled()
        z = embeddings().requires_grad_()
        loss = nt_xent(z, IMAGE, TASK, TAU, "all", queue)
        if early:
            queue.push(z, IMAGE, TASK)
        loss.backward()
        gradients.append(z.grad)
    assert torch.equal(*gradients)


def test_the_queue_is_for_the_image_term(loss_plan):
    queue, _ = filled()
    outputs = Outputs(embeddings(), None, (), ())
    labels = Labels(IMAGE, TASK, TASK[None])
    plan = replace(loss_plan, reconstruction=0.0, voxel=0.0, task_loss="contrast", group_loss="contrast")
    without, with_queue = (hierarchical_loss(outputs, labels, plan, q) for q in (None, queue))
    assert with_queue["image"] > without["image"]
    assert with_queue["task"] == without["task"] and with_queue["group"] == without["group"]


def process(rank, folder, z):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    half, queue = slice(3 * rank, 3 * rank + 3), NegativeQueue(DOMAINS, 4, WIDTH)
    queue.push(z[:, half], IMAGE[half], TASK[half])
    torch.save(queue.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_hold_the_queue_of_one(tmp_path):
    z, whole = embeddings(), NegativeQueue(DOMAINS, 4, WIDTH)
    whole.push(z, IMAGE, TASK)
    torch.multiprocessing.spawn(process, (str(tmp_path), z), nprocs=2)
    for rank in range(2):
        held = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(held[name], tensor) for name, tensor in whole.state_dict().items())
