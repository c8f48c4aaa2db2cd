"""Real processes: two with half the images each must train as one with all of them."""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from hssl_nnunet.losses.gather import gather_with_gradient
from hssl_nnunet.losses.hierarchical import Labels, Outputs, hierarchical_loss
from hssl_nnunet.losses.reconstruction import Reconstruction
from hssl_nnunet.losses.voxel import VoxelEmbeddings

IMAGES, PROCESSES = 6, 2
TERMS = ("image", "task", "group", "reconstruction", "voxel")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.project, self.task, self.group = nn.Linear(8, 5), nn.Linear(5, 3), nn.Linear(5, 2)
        self.decode, self.places = nn.Linear(5, 8), nn.Linear(5, 4 * 3)

    def forward(self, views):  # (V, N, 8)
        h = self.project(views)
        places = normalize(self.places(h).unflatten(-1, (4, 3)), dim=-1)
        return normalize(h, dim=-1), self.task(h), self.group(h), self.decode(h[0]), places


def loss_of(network, images, plan):
    generator = torch.Generator().manual_seed(1)
    views = torch.randn(2, IMAGES, 8, dtype=torch.float64, generator=generator)[:, images]
    hidden = torch.rand(IMAGES, 8, generator=generator) < 0.5
    hidden[0] = hidden[2] = False  # both in the first half: the processes count different numbers of images
    kept = torch.rand(IMAGES, 4, generator=generator) < 0.7
    kept[1] = False  # again of the first half
    z, task, group, decoded, places = network(views)
    square = (-1, 1, 2, 4)
    target, hidden = views[0].view(square), hidden[images].view(square)
    reconstruction = Reconstruction(decoded.view(square), target, hidden, torch.ones_like(hidden))
    tasks = torch.tensor([0, 1, 2, 1, 0, 0])[images]
    labels = Labels(torch.arange(IMAGES)[images], tasks, (tasks > 0).long()[None])
    outputs = Outputs(z, task, (group,), (reconstruction,), VoxelEmbeddings(places, kept[images]))
    return hierarchical_loss(outputs, labels, plan)


def gradients(network, images, plan):
    network.zero_grad()
    terms = loss_of(network, images, plan)
    terms["total"].backward()
    grads = {n.removeprefix("module."): p.grad for n, p in network.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in terms.items()}, grads


def process(rank, folder, plans):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    half = IMAGES // PROCESSES
    images = torch.arange(rank * half, (rank + 1) * half)
    network = DistributedDataParallel(Network().double(), find_unused_parameters=True)
    result = {
        "rows": gather_with_gradient(images),
        "steps": [gradients(network, images, plan) for plan in plans],
    }
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def variants(plan):
    contrast = replace(plan, task_loss="contrast", group_loss="contrast", reconstruction_target="full")
    alone = [replace(plan, **{**dict.fromkeys(TERMS, 0.0), name: 1.0}) for name in TERMS]
    return [plan, contrast, *(replace(contrast, negatives=n) for n in ("same_task", "other_task")), *alone]


def test_two_processes_train_as_one(loss_plan, tmp_path):
    plans = variants(loss_plan)
    torch.multiprocessing.spawn(process, (str(tmp_path), plans), nprocs=PROCESSES)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES)]
    network = Network().double()
    for step, plan in enumerate(plans):
        terms, grads = gradients(network, torch.arange(IMAGES), plan)
        assert any(g.abs().max() > 1e-3 for g in grads.values())
        for result in results:
            torch.testing.assert_close(result["steps"][step][1], grads, rtol=1e-9, atol=1e-12)
        parts = [result["steps"][step][0] for result in results]
        mean = {name: sum(p[name] for p in parts) / PROCESSES for name in parts[0]}
        torch.testing.assert_close(mean, terms)
        if "image" in terms:  # every process already returns the contrast over all images
            torch.testing.assert_close(parts[0]["image"], terms["image"])
    assert all(torch.equal(result["rows"], torch.arange(IMAGES)) for result in results)


def test_one_process_gathers_nothing():
    x = torch.randn(3, 2)
    assert gather_with_gradient(x) is x
