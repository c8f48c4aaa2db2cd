"""Does pretraining name a domain by its images, or by the plan that they go through?

    python benchmarks/plan_shortcut.py CORPUS [NAME=]CHECKPOINT... -p PLANS [--out .../plan_shortcut.json]

CORPUS is what `hssl corpus` wrote, CHECKPOINT a `checkpoint_final.pth` of a pretraining on its domains with the term
`task` as classification. What the task head calls: white noise in each domain's own plan; images of each domain in its
own plan; and images of each domain in every other domain's plan, with that plan's crops.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from statistics import mean
from typing import Any

import torch
from common import about, trainer_and_checkpoints
from torch import Tensor

from hssl_nnunet.data.crops import read_chunk
from hssl_nnunet.data.sampling import ChunkPlan
from hssl_nnunet.data.views import make_views
from hssl_nnunet.files import write_json
from hssl_nnunet.transfer.checkpoints import load_checkpoint

IMAGES = 8  # of each domain


def main() -> None:
    args, trainer, checkpoints = trainer_and_checkpoints(__doc__, "plan_shortcut.json")
    found = {}
    for label, path in checkpoints.items():
        trainer.model.load_state_dict(load_checkpoint(str(path))["network_weights"])
        found[label] = shortcut(trainer.model.eval(), trainer)
        print(label, found[label], flush=True)
    told = {"command": f"python {shlex.join(sys.argv)}", **about(args.device, args.threads)}
    write_json(args.out, {**told, "seed": trainer.plan.seed, "images": IMAGES, "found": found})


@torch.no_grad()
def shortcut(model: Any, trainer: Any) -> dict[str, Any]:
    """Shares of noise, by domain, and of images, that are called by their own domain's name or by their plan's."""
    domains = range(len(trainer.corpus.domains))
    noise = [called(model, plan, noise_crops(trainer, plan), plan) for plan in domains]
    own = [called(model, domain, crops(trainer, domain, domain), domain) for domain in domains]
    pairs = [(domain, plan, crops(trainer, domain, plan)) for domain in domains for plan in domains if plan != domain]
    values = {
        "noise_called_as_its_plan": mean(noise),
        "image_in_its_plan_called_rightly": mean(own),
        "image_in_another_plan_called_as_the_plan": mean(called(model, p, x, p) for _, p, x in pairs),
        "image_in_another_plan_called_rightly": mean(called(model, p, x, d) for d, p, x in pairs),
    }
    return {**{name: round(value, 3) for name, value in values.items()}, "noise_by_plan": noise}


def called(model: Any, plan: int, images: Tensor, domain: int) -> float:
    """Share of crops, run in a domain's plan, that the task head calls `domain`."""
    h = model.embed(plan, images, torch.ones_like(images, dtype=torch.bool))
    return float((model.task_head(h).argmax(1) == domain).float().mean())


def noise_crops(trainer: Any, domain: int) -> Tensor:
    generator = torch.Generator().manual_seed(domain)
    return torch.randn(IMAGES, 1, *trainer.geometries[domain].crop_size, generator=generator).to(trainer.device)


def crops(trainer: Any, domain: int, plan: int) -> Tensor:
    """Unchanged crops of a domain's first images, in the size of a plan's."""
    geometry = replace(trainer.geometries[domain], crop_size=trainer.geometries[plan].crop_size)
    still = replace(trainer.plan.views, rotation_degree=0.0, scale=0.0, mirror=False, intensity=0.0)
    rows = [i for i, row in enumerate(trainer.rows) if row.domain == domain][:IMAGES]
    raw = read_chunk(ChunkPlan(domain, tuple(rows), 0), trainer.rows, geometry, still, trainer.root.parent)
    return make_views(raw.to(trainer.device), geometry, still, num_views=1).clean[0]


if __name__ == "__main__":
    main()
